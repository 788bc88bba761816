#!/bin/sh
# Installs the packages of tests/package.json into FOLDER, unless they are there; prints the path to set NODE_PATH to.
#
#   tests/node_packages.sh FOLDER
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"
if ! cmp -s "$here/package.json" installed.json; then
    cp "$here/package.json" package.json
    rm -rf node_modules
    # better-sqlite3 has a binary for common Node.js versions; where there is none, node-gyp compiles it.
    npm install --no-audit --no-fund --no-package-lock --loglevel=error >&2
    node -e 'new (require("better-sqlite3"))(":memory:").close()' >&2
    cp package.json installed.json
fi
echo "$PWD/node_modules"
