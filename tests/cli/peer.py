"""A client of the engine's socket, as core/server/wire.h describes it: frames, and nothing that a client ought to check."""
import json
import socket
import struct

HELLO, REQUEST, CANCEL, PIECE, RESULT, ERROR = range(1, 7)


def frame(kind, number, body=None):
    data = b"" if body is None else json.dumps(body).encode()
    return struct.pack("<IBxxxI", len(data), kind, number) + data


class Peer:
    """A connection that has said its HELLO, unless `greet` is false. Reading beyond the end raises EOFError."""

    def __init__(self, path, greet=True, timeout=None):
        self.socket = socket.socket(socket.AF_UNIX)
        self.unread = b""
        try:
            self.socket.settimeout(timeout)
            self.socket.connect(path)
            if greet:
                self.socket.sendall(frame(HELLO, 0, {"protocol": 1, "version": "test"}))
        except OSError:
            self.socket.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, number, request):
        self.socket.sendall(frame(REQUEST, number, request))

    def cancel(self, number):
        self.socket.sendall(frame(CANCEL, number))

    def _read(self, size):
        while len(self.unread) < size:
            got = self.socket.recv(max(65536, size - len(self.unread)))
            if not got:
                raise EOFError("the connection was closed by the engine")
            self.unread += got
        data, self.unread = self.unread[:size], self.unread[size:]
        return data

    def receive(self):
        """(kind, number, body) of the next frame but the HELLO."""
        while True:
            size, kind, number = struct.unpack("<IBxxxI", self._read(12))
            body = json.loads(self._read(size))
            if kind != HELLO:
                return kind, number, body

    def ask(self, request, number=7):
        """The body of a request's last frame: its result, or its error, which alone has a `status`."""
        self.send(number, request)
        while True:
            kind, _, body = self.receive()
            if kind in (RESULT, ERROR):
                return body


def ask(path, request, timeout=None):
    """The same, on a connection of its own."""
    with Peer(path, timeout=timeout) as peer:
        return peer.ask(request)
