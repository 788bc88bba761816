"""A user other than the server's, for the tests of mixtral.listen: clients of an engine's socket that run as `nobody`.

serve() starts a process that takes a line {"path": P, "request": {...}} on a socket of its own, asks the engine at P as
that user, who is also in GROUP, and answers with a line: the engine's, or {"refused": the system's reason}. Only root can do this.
"""
import grp
import json
import os
import pwd
import socket
import sys

from temporary import TOP  # beside this file

sys.path.insert(0, os.path.join(TOP, "tests", "cli"))
from peer import ask

USER = "nobody"
GROUP = "www-data"  # there is one on every Debian; the tests' server is in it, too
SECONDS = 60


def answer(line):
    try:
        call = json.loads(line)
        return ask(call["path"], call["request"], timeout=SECONDS)
    except (OSError, EOFError) as error:
        return {"refused": str(error)}


def serve(path):
    """The pid of that process, to be killed, and its uid."""
    user = pwd.getpwnam(USER)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    os.chmod(path, 0o666)
    listener.listen()
    pid = os.fork()
    if pid:
        listener.close()
        return pid, user.pw_uid
    os.setgroups([grp.getgrnam(GROUP).gr_gid])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rw", encoding="utf-8") as stream:
            print(json.dumps(answer(stream.readline())), file=stream, flush=True)
