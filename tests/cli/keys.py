#!/usr/bin/env python3
"""`mixtral key`: the file that it keeps, whoever else writes it, and files that are none."""
import hashlib
import os
import re
import stat
import subprocess
import tempfile

import harness
from harness import CLI

SECRET = "a1" * 32
HASH = "b2" * 32
LINE = f"0123456789ab alice 2026-01-31T23:59:59Z 2 - {HASH}"


class Keys(harness.Suite):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.file = os.path.join(folder.name, "keys")

    def read(self):
        with open(self.file, encoding="ascii") as file:
            return file.read().splitlines()

    def write(self, content):
        with open(self.file, "wb") as file:
            file.write(content)

    def new(self, *options):
        key = self.succeeds("key", "new", self.file, *options)
        self.assertRegex(key, r"\Amx-[A-Za-z0-9_-]{43}\n\Z")
        return key.strip()

    def test_a_key_is_a_hash_in_the_file(self):
        key = self.new("--name", "alice", "--requests", "2", "--tokens-per-minute", "5000")
        other = self.new()
        self.assertNotEqual(key, other)
        first, *lines = self.read()
        magic, version, secret = first.split(" ")
        self.assertEqual((magic, version), ("mixtral-keys", "1"))
        for line, text in zip(lines, (key, other), strict=True):
            expected = hashlib.blake2b(text.encode(), digest_size=32, key=bytes.fromhex(secret)).hexdigest()
            self.assertEqual(line.split(" ")[-1], expected)
        self.assertNotIn(key[3:], "\n".join(self.read()))
        self.assertEqual(lines[0].split(" ")[1:2] + lines[0].split(" ")[3:5], ["alice", "2", "5000"])
        ident, name, _, *limits = lines[1].split(" ")[:5]
        self.assertEqual((name, limits), (ident, ["-", "-"]))
        self.assertEqual(stat.S_IMODE(os.stat(self.file).st_mode), 0o600)
        self.assertEqual(os.listdir(self.folder), ["keys"])

    def test_list(self):
        self.new("--name", "alice", "--requests", "0")
        heading, line = self.succeeds("key", "list", self.file).splitlines()
        self.assertEqual(heading.split(), ["name", "id", "created", "requests", "tokens/min"])
        name, ident, created, requests, tokens = line.split()
        self.assertEqual((name, requests, tokens), ("alice", "0", "-"))
        self.assertRegex(ident, r"\A[0-9a-f]{12}\Z")
        self.assertRegex(created, r"\A20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z")

    def test_revoke_by_name_and_by_id(self):
        self.new("--name", "alice")
        self.new("--name", "bob")
        self.new("--name", "carol")
        before = self.read()
        self.assertEqual(self.succeeds("key", "revoke", self.file, "bob"), "")
        self.assertEqual(self.read(), before[:2] + before[3:])
        self.assertEqual(self.succeeds("key", "revoke", self.file, before[1].split(" ")[0]), "")
        self.assertEqual(self.read(), [before[0], before[3]])
        self.fails("key", "revoke", self.file, "bob", words=["no key bob"])
        self.assertEqual(self.read(), [before[0], before[3]])

    def test_mode_and_owner_stay(self):
        self.new()
        os.chmod(self.file, 0o640)
        owner = (33, 33) if os.getuid() == 0 else (os.getuid(), os.getgid())
        os.chown(self.file, *owner)
        before = os.stat(self.file).st_ino
        self.new()
        after = os.stat(self.file)
        self.assertEqual((stat.S_IMODE(after.st_mode), after.st_uid, after.st_gid), (0o640, *owner))
        self.assertNotEqual(after.st_ino, before)

    def test_what_a_link_names_is_replaced(self):
        self.new()
        link = os.path.join(self.folder, "link")
        os.symlink("keys", link)
        self.succeeds("key", "new", link)
        self.assertTrue(os.path.islink(link))
        self.assertEqual(len(self.read()), 3)
        os.unlink(self.file)
        self.fails("key", "new", link, words=["link to nothing"])
        self.assertEqual(os.listdir(self.folder), ["link"])

    def test_many_at_once(self):
        # The first of them make the file.
        running = [subprocess.Popen([CLI, "key", "new", self.file], stdout=subprocess.PIPE) for _ in range(12)]
        keys = {process.communicate()[0] for process in running}
        self.assertEqual([process.returncode for process in running], [0] * 12)
        self.assertEqual((len(keys), len(self.read())), (12, 13))
        secret = bytes.fromhex(self.read()[0].split(" ")[2])
        hashes = {line.split(" ")[-1] for line in self.read()[1:]}
        self.assertEqual(hashes, {hashlib.blake2b(key.strip(), digest_size=32, key=secret).hexdigest() for key in keys})

    def test_names_and_limits(self):
        self.new("--name", "a.B_c-d@e")
        before = self.read()
        for options, words in ((("--name", "a.B_c-d@e"), "already"), (("--name", before[1][:12]), "already"),
                               (("--name", "a b"), "name of 1 to 32"), (("--name", "a\n"), "name of 1 to 32"),
                               (("--name", "x" * 33), "name of 1 to 32"), (("--name", ""), "empty"), (("--name",), "a value"),
                               (("--requests", "-1"), "0 to"), (("--requests", "many"), "0 to"),
                               (("--tokens-per-minute", "99999999999"), "0 to"), (("--color", "red"), "--color")):
            with self.subTest(options=options):
                self.fails("key", "new", self.file, *options, words=[words])
        self.assertEqual(self.read(), before)
        for arguments in ((), ("new",), ("list",), ("list", self.file, "x"), ("revoke", self.file), ("delete", self.file)):
            self.fails("key", *arguments, words=["key: expected"])

    def test_hostile_files(self):
        good = f"mixtral-keys 1 {SECRET}\n{LINE}\n"
        self.write(good.encode())
        self.assertIn("alice", self.succeeds("key", "list", self.file))
        fields = LINE.split(" ")
        other = LINE.replace("0123456789ab", "0123456789ac")
        for content, words in ((b"", "line 1"), (b"root:x:0:0\n", "line 1"), (good[:-1].encode(), "line 2"),
                               (good.replace("keys 1", "keys 2").encode(), "line 1"), (good.replace("\n", "\r\n").encode(), "line 1"),
                               (good.encode() + b"\n", "line 3: expected an id"), (good.encode() + b"# a comment\n", "line 3"),
                               (good.encode() + LINE.encode() + b"\n", "line 3: there is a key alice"),
                               (good.encode() + other.encode() + b"\n", "line 3: there is a key alice"),
                               (good.encode() + b"\0" * 50, "line 3"), (b"\xff\xfe" * 40 + b"\n", "line 1"),
                               (good.encode() + b"x" * 100000 + b"\n", "line 3"), (b"y" * (2 << 20), "at most"),
                               (good.replace("alice", "al\x1b[2Jice").encode(), "line 2: expected a name"),
                               (good.replace(HASH, HASH[:-1]).encode(), "line 2: expected a hash"),
                               (good.replace(HASH, HASH + " ").encode(), "line 2: expected a hash"),
                               (good.replace(HASH, HASH.upper()).encode(), "line 2: expected a hash"),
                               *((f"mixtral-keys 1 {SECRET}\n{' '.join(fields[:n])}\n".encode(), "line 2: expected") for n in range(6)),
                               *((good.replace(" 2 - ", f" {limit} - ").encode(), "line 2: expected requests")
                                 for limit in ("", "-1", "+1", "99999999999", "2147483648", "0x1", "1.5")),
                               (good.replace("T23", " 23").encode(), "line 2: expected a time")):
            with self.subTest(content=content[:120]):
                self.write(content)
                for arguments in (("list", self.file), ("new", self.file), ("revoke", self.file, "alice")):
                    self.fails("key", *arguments, words=[self.file, words])
                with open(self.file, "rb") as file:
                    self.assertEqual(file.read(), content)

    def test_too_many(self):
        lines = [f"{i:012x} {i:012x} 2026-01-31T23:59:59Z - - {HASH}" for i in range(4096)]
        self.write("\n".join([f"mixtral-keys 1 {SECRET}", *lines, ""]).encode())
        self.fails("key", "new", self.file, words=["4096"])
        self.succeeds("key", "revoke", self.file, lines[7][:12])
        self.new()
        self.assertEqual(len(self.read()), 4097)

    def test_what_is_no_file(self):
        for path, words in ((self.folder, "regular file"), ("/dev/zero", "regular file"), ("/nowhere/keys", "No such file"),
                            ("x" * 300, "too long")):
            self.fails("key", "new", path, words=[words])
            self.fails("key", "list", path, words=[])
        fifo = os.path.join(self.folder, "fifo")
        os.mkfifo(fifo)
        self.fails("key", "new", fifo, words=["regular file"])
        self.fails("key", "list", self.file, words=["No such file"])
        self.fails("key", "revoke", self.file, "alice", words=["No such file"])
        self.assertEqual(os.listdir(self.folder), ["fifo"])

    def test_a_full_disk_and_a_closed_output(self):
        self.new()
        before = self.read()

        def limit():
            import resource
            import signal
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))
        done = subprocess.run([CLI, "key", "new", self.file], capture_output=True, preexec_fn=limit, check=False)
        self.assertEqual((done.returncode, done.stdout), (1, b""))
        self.assertRegex(done.stderr, rb"cannot write")
        self.assertEqual((self.read(), os.listdir(self.folder)), (before, ["keys"]))
        with open("/dev/full", "wb") as full:
            done = subprocess.run([CLI, "key", "new", self.file], stdout=full, stderr=subprocess.PIPE, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertTrue(re.search(rb"standard output", done.stderr), done.stderr)


if __name__ == "__main__":
    harness.main()
