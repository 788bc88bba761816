#!/bin/sh
# The long tests, which `make soak` runs after building: every fuzz target for SOAK_SECONDS (600), clients of a server that
# are killed and hostile bodies through nginx for as long, then SOAK_CHATS (10,000) chats in one process through SQLite, and
# connections and engines that come and go, whose memory must not grow; 32 sessions of PostgreSQL for SOAK_PG_SECONDS (300),
# and static files beside streams of nginx for SOAK_NGINX_SECONDS (300).
#
#     SOAK_SECONDS=0      no fuzzing, nobody is killed
#     SOAK_MODEL=x.gguf   chats with that model instead of a tiny one of random weights
set -eu
cd "$(dirname "$0")/.."
seconds=${SOAK_SECONDS:-600}
failed=0

if [ "$seconds" -gt 0 ]; then
    for source in tests/fuzz/fuzz_*.c; do
        echo "fuzzing $(basename "$source" .c) for $seconds s"
        tests/fuzz/run "$seconds" "$(basename "$source" .c)" || failed=1
    done
    /usr/bin/python3 tests/cli/killed_clients.py "$seconds" || failed=1
    echo "hostile bodies through nginx for $seconds s"
    MX_SOAK_SECONDS=$seconds /usr/bin/python3 tests/nginx/hostile.py || failed=1
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
model=${SOAK_MODEL:-}
if [ -z "$model" ]; then
    model=$folder/soak.gguf
    build/mixtral synth "$model" --layers 2 --dim 64 --ff 64 --heads 4 --kv-heads 2 --experts 4 --experts-used 2 \
        --vocab-size 600 --context 1024 --type Q8_0
fi

/usr/bin/python3 - "$model" "${SOAK_CHATS:-10000}" <<'END' || failed=1
import os
import sqlite3
import sys
import time

MODEL, CHATS = sys.argv[1], max(int(sys.argv[2]), 100)
EXTENSION = os.path.abspath("build/mixtral")
PROGRESS = 500
GROWTH_SHARE, GROWTH_KB = 0.02, 256   # what anonymous memory may grow by after the warm-up: allocators breathe
OPTIONS = '{"context": 1024}'
KINDS = 25                            # of chats, one after the other; the warm-up sees each at least twice
failures = []


def memory():
    """KB: (resident, of which anonymous: without the mapped model)."""
    with open("/proc/self/status", encoding="ascii") as status:
        values = dict(line.split(":") for line in status)
    return tuple(int(values[key].split()[0]) for key in ("VmRSS", "RssAnon"))


def count(folder):
    return len(os.listdir(f"/proc/self/{folder}"))


def connect():
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.enable_load_extension(True)
    db.execute("SELECT load_extension(?)", (EXTENSION,))
    return db


def refused(db, sql, *values):
    try:
        db.execute(sql, values).fetchall()
    except sqlite3.Error:
        return
    raise AssertionError(f"{sql} should have failed")


def chat(db, i):
    """Chat i: of short and long prompts, streamed ones that are left early, several choices, and failures."""
    kind = i % KINDS
    prompt = "tell me " * (1 + 4 * kind) + str(i)
    options = '{"max_tokens": %d, "ignore_eos": true, "seed": %d}' % (4 + kind % 7, i)
    if kind % 5 == 1:
        rows = db.execute("SELECT piece FROM mixtral_stream(?, ?) LIMIT 2", (prompt, options)).fetchall()
        assert len(rows) <= 2
    elif kind % 5 == 2:
        text = db.execute("SELECT mixtral_generate(?, json_set(?, '$.n', 3, '$.stop', json_array('zz', 'q')))",
                          (prompt, options)).fetchone()[0]
        assert '"choices"' in text
    elif kind == 3:
        refused(db, "SELECT mixtral_chat(?, '{\"nonsense\": 1}')", prompt)
        refused(db, "SELECT mixtral_chat(?)", "far too long " * 2000)
        db.execute("SELECT mixtral_embed(?), mixtral_token_count(?)", (prompt, prompt)).fetchone()
        db.execute("SELECT count(*) FROM mixtral_chunks(?, 5, 2)", (prompt,)).fetchone()
        db.execute("SELECT mixtral_chat(?, ?)", (prompt, options)).fetchone()
    else:
        assert db.execute("SELECT mixtral_chat(?, ?)", (prompt, options)).fetchone()[0] is not None


def soak(what, n, once, progress):
    """Runs once(i) n times; at the end memory, descriptors and threads are what they were after a fifth of them."""
    warm_up = max(n // 5, 2 * KINDS)
    begin = time.monotonic()
    before = None
    for i in range(n):
        once(i)
        if i + 1 == warm_up:
            before = memory(), count("fd"), count("task")
        if (i + 1) % progress == 0 or i + 1 == n:
            resident, anonymous = memory()
            print(f"{what}: {i + 1:6} of {n}, {time.monotonic() - begin:6.0f} s, resident {resident / 1024:.1f} MB, "
                  f"of which anonymous {anonymous / 1024:.2f} MB", flush=True)
    grown = memory()[1] - before[0][1]
    allowed = int(before[0][1] * GROWTH_SHARE) + GROWTH_KB
    print(f"{what}: anonymous memory has grown by {grown} KB since number {warm_up} ({before[0][1]} KB); "
          f"{allowed} KB are allowed")
    if grown > allowed:
        failures.append(f"{what}: memory has grown by {grown} KB")
    deadline = time.monotonic() + 5  # the engine closes its end of a connection a moment later
    while (count("fd") > before[1] or count("task") > before[2]) and time.monotonic() < deadline:
        time.sleep(0.05)
    if count("fd") > before[1] or count("task") > before[2]:
        failures.append(f"{what}: descriptors and threads were {before[1:]}, are {count('fd'), count('task')}")


def come_and_go(i):
    db = connect()
    chat(db, i)
    db.close()


def open_and_close(i):
    db.execute("SELECT mixtral_open(?, ?)", (MODEL, OPTIONS)).fetchone()
    chat(db, i)
    db.execute("SELECT mixtral_close(?)", (MODEL,)).fetchone()


os.environ["MIXTRAL_MODEL"] = MODEL
db = connect()
db.execute("SELECT mixtral_open(?, ?)", (MODEL, OPTIONS)).fetchone()
soak("chats", CHATS, lambda i: chat(db, i), PROGRESS)
soak("connections", max(CHATS // 5, 250), come_and_go, PROGRESS)
soak("engines", max(CHATS // 20, 250), open_and_close, 100)
for failure in failures:
    print("FAILED " + failure)
sys.exit(1 if failures else 0)
END

pg_seconds=${SOAK_PG_SECONDS:-300}
if [ "$pg_seconds" -gt 0 ]; then
    echo "32 sessions of PostgreSQL for $pg_seconds s"
    MX_TEST_MODEL=$(tests/fetch.sh model) MX_SOAK_SECONDS=$pg_seconds tests/pg/run 005 || failed=1
fi

nginx_seconds=${SOAK_NGINX_SECONDS:-300}
if [ "$nginx_seconds" -gt 0 ]; then
    echo "static files beside 32 streams of nginx for $nginx_seconds s"
    MX_TEST_MODEL=$(tests/fetch.sh model) MX_SOAK_SECONDS=$nginx_seconds /usr/bin/python3 tests/nginx/load.py || failed=1
fi

[ "$failed" -eq 0 ] && echo "soak: nothing found" || echo "soak: FAILED"
exit "$failed"
