#!/bin/sh
# Installs the Debian packages that are missing, and says which.
#
#   tests/install.sh demo [check] [pg] [nginx] [page]   what building and the demo need; what the tests need besides; a PostgreSQL
#                                           server; nginx with its headers, and curl; a browser for the chat page
#   tests/install.sh --headers      installs nothing: names the package of each header that $CC does not find
#
# Root or sudo is needed only if something is missing. A command counts as there wherever it came from: another
# Node.js than Debian's is as good.
set -eu

header_packages='stdio.h=libc6-dev sodium.h=libsodium-dev jansson.h=libjansson-dev pcre2.h=libpcre2-dev
    sqlite3ext.h=libsqlite3-dev'
demo_commands='gcc=gcc sqlite3=sqlite3 python3=python3 pip3=python3-pip'
demo_libraries='libc6-dev libsodium-dev libjansson-dev libpcre2-dev libsqlite3-dev ca-certificates'
check_commands='clang=clang g++=g++ valgrind=valgrind node=nodejs npm=npm'
check_libraries='libcmocka-dev libclang-rt-dev libsimde-dev'
nginx_libraries='nginx nginx-dev curl'
page_commands='chromium=chromium'
# Any version from 14 to 18 will do, if it is there with its headers; else Debian 12's.
pg_libraries=
for version in 14 15 16 17 18; do
    [ -x /usr/lib/postgresql/$version/bin/postgres ] && [ -f /usr/include/postgresql/$version/server/postgres.h ] &&
        pg_libraries=libipc-run-perl
done
[ -n "$pg_libraries" ] || pg_libraries='postgresql-15 postgresql-server-dev-15 libipc-run-perl'

has_header() {
    printf '#define PCRE2_CODE_UNIT_WIDTH 8\n#include <stddef.h>\n#include <%s>\n' "$1" |
        $CC -fsyntax-only -x c - 2>/dev/null # $CC unquoted: it may carry arguments
}

is_installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

check_headers() {
    missing=
    CC=${CC:-cc}
    if ! command -v "${CC%% *}" >/dev/null 2>&1; then
        echo "There is no compiler '${CC%% *}'. On Debian: apt-get install gcc" >&2
        exit 1
    fi
    for pair in $header_packages; do
        has_header "${pair%=*}" && continue
        echo "<${pair%=*}> is missing; it is in Debian's ${pair#*=}." >&2
        missing="$missing ${pair#*=}"
    done
    [ -z "$missing" ] && exit 0
    echo "Install it: apt-get install$missing (make demo and make check do that by themselves)" >&2
    exit 1
}

commands= libraries=
for need in "$@"; do
    case $need in
    --headers) check_headers ;;
    demo) commands="$commands $demo_commands" libraries="$libraries $demo_libraries" ;;
    check) commands="$commands $check_commands" libraries="$libraries $check_libraries" ;;
    pg) libraries="$libraries $pg_libraries" ;;
    nginx) libraries="$libraries $nginx_libraries" ;;
    page) commands="$commands $page_commands" ;;
    *) echo "usage: $0 demo [check] [pg] [nginx] [page] | --headers" >&2; exit 1 ;;
    esac
done

if ! command -v dpkg-query >/dev/null 2>&1; then
    echo "This is not Debian: nothing is installed. Needed: $commands $libraries" | tr '\n' ' ' >&2
    check_headers
fi

missing=
for pair in $commands; do
    command -v "${pair%=*}" >/dev/null 2>&1 || missing="$missing ${pair#*=}"
done
for package in $libraries; do
    is_installed "$package" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
        echo "Missing, and installing needs root or sudo: apt-get install$missing" >&2
        exit 1
    fi
    as_root=sudo
fi
echo "Installing:$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() {
    # shellcheck disable=SC2086  # a list of packages
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing >"$log" 2>&1 </dev/null
}
# The package lists may be absent (a fresh machine) or old (a file that is gone from the mirror).
if ! install; then
    if ! $as_root apt-get update -q >"$log" 2>&1 || ! install; then
        tail -n 20 "$log" >&2
        echo "apt-get could not install:$missing" >&2
        exit 1
    fi
fi
