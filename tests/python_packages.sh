#!/bin/sh
# Installs the packages of tests/requirements.txt into FOLDER, unless they are there; prints the path to set PYTHONPATH to.
#
#   tests/python_packages.sh FOLDER
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"
if [ ! -d packages ] || ! cmp -s "$here/requirements.txt" installed.txt; then
    rm -rf packages
    python3 -m pip install --quiet --no-deps --only-binary :all: --disable-pip-version-check --root-user-action ignore \
        --target packages --requirement "$here/requirements.txt" >&2
    cp "$here/requirements.txt" installed.txt
fi
echo "$PWD/packages"
