"""What the suites of nginx share: a real nginx in a folder of its own before `mixtral serve`, and a client of it.

A suite gives, as text of nginx's configuration, what its main, events, http and server contexts have besides; `{folder}` in it is the folder.
nginx listens at http.sock there, the engine at engine.sock. error.log is read when the suite ends: a worker that died fails it.
"""
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "cli"))
import harness  # noqa: E402
from peer import ask  # noqa: E402

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
MODULE = os.path.abspath(os.path.join(os.path.dirname(harness.CLI), "ngx_http_mixtral_module.so"))
LONG = {"max_tokens": 6000, "ignore_eos": True, "temperature": 0}
HELLO = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6, "temperature": 0}

CONFIGURATION = """
load_module {module};
{user}
daemon off;
pid nginx.pid;
error_log error.log info;
worker_processes 2;
{main}
events {{ {events} }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {http}
    server {{
        listen unix:{folder}/http.sock;
        {server}
    }}
}}
"""


class Connection(http.client.HTTPConnection):
    """To a unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=harness.SECONDS)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def read(path):
    with open(path, "rb") as file:
        return file.read().decode(errors="replace")


def processes():
    """{pid: (parent, its title)} of all that nginx has named."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            title = read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
            if title.startswith("nginx: "):
                found[int(pid)] = (int(read(f"/proc/{pid}/stat").rpartition(")")[2].split()[1]), title)
        except OSError:
            pass # it has ended meanwhile
    return found


def copy_readable(folder):
    """model.gguf and mixtral, in a folder that nginx's user may enter: where they are it may have no access."""
    os.chmod(folder, 0o755)
    for source, name, mode in ((harness.MODEL, "model.gguf", 0o644), (harness.CLI, "mixtral", 0o755)):
        shutil.copy(source, os.path.join(folder, name))
        os.chmod(os.path.join(folder, name), mode)


def write_configuration(folder, server="", http="", main="", events=""):
    """Arguments for nginx."""
    path = os.path.join(folder, "nginx.conf")
    with open(path, "w", encoding="utf-8") as file:
        parts = {"server": server, "http": http, "main": main, "events": events}
        file.write(CONFIGURATION.format(module=MODULE, folder=folder, user="user www-data;" if os.getuid() == 0 else "",
                                        **{name: text.replace("{folder}", folder) for name, text in parts.items()}))
    return ["-p", folder + "/", "-c", path]


class Suite(unittest.TestCase):
    MAIN = EVENTS = HTTP = SERVER = ""
    MODEL = harness.MODEL
    ENGINE = ("--socket-mode", "0666")  # arguments of `mixtral serve`

    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.folder = temporary.name
        os.chmod(cls.folder, 0o755)
        cls.engine_socket = os.path.join(cls.folder, "engine.sock")
        cls.start_engine()
        cls.addClassCleanup(lambda: cls.stop(cls.engine))
        arguments = cls.configure()
        with open(os.path.join(cls.folder, "stderr"), "wb") as log:
            cls.nginx = subprocess.Popen([NGINX, *arguments], stderr=log)
        cls.addClassCleanup(lambda: cls.stop(cls.nginx))
        cls.until(lambda: os.path.exists(os.path.join(cls.folder, "nginx.pid"))) # it listens then

    @classmethod
    def configure(cls):
        """Writes the suite's configuration, in setUpClass and where a test has changed it."""
        return write_configuration(cls.folder, cls.SERVER, cls.HTTP, cls.MAIN, cls.EVENTS)

    @classmethod
    def tearDownClass(cls):
        log = cls.log()
        if "exited on signal" in log:
            raise AssertionError("a worker died: " + log[-4000:])

    @classmethod
    def log(cls):
        """What is in nginx's error log."""
        with open(os.path.join(cls.folder, "error.log"), encoding="utf-8", errors="replace") as file:
            return file.read()

    @classmethod
    def start_engine(cls):
        cls.engine = subprocess.Popen([harness.CLI, "serve", "--model", cls.MODEL, "--socket", cls.engine_socket,
                                       *cls.ENGINE], stderr=subprocess.DEVNULL)

        def answers():
            try:
                return ask(cls.engine_socket, {"op": "models"}, timeout=harness.SECONDS)
            except OSError:
                return False
        cls.until(answers)

    @staticmethod
    def stop(process):
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @staticmethod
    def until(condition, seconds=harness.SECONDS):
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError("did not happen in time")
            time.sleep(0.02)

    def send(self, path, body=None, method=None, **more):
        """The response, not read."""
        connection = Connection(os.path.join(self.folder, "http.sock"))
        self.addCleanup(connection.close)
        if body is not None and not isinstance(body, bytes) and not hasattr(body, "__next__"):
            body = json.dumps(body).encode()
        connection.request(method or ("GET" if body is None else "POST"), path, body, **more)
        response = connection.getresponse()
        response.connection = connection
        return response

    def get(self, path, body=None, **more):
        response = self.send(path, body, **more)
        text = response.read()
        self.assertEqual(response.status, 200, text)
        return json.loads(text)

    def error(self, status, path, body=None, **more):
        response = self.send(path, body, **more)
        text = response.read()
        self.assertEqual(response.status, status, text)
        self.assertEqual(response.headers["Content-Type"], "application/json")
        error = json.loads(text)["error"]
        self.assertEqual(set(error), {"message", "type", "param", "code"})
        if status == 503 and not path.startswith("/limited"):
            self.assertGreater(int(response.headers["Retry-After"]), 0)
        return error

    def chunks(self, path, body):
        response = self.send(path, dict(body, stream=True))
        self.assertEqual(response.status, 200)
        self.assertTrue(response.headers["Content-Type"].startswith("text/event-stream"))
        self.assertEqual(response.headers["X-Accel-Buffering"], "no")
        events = [event for event in response.read().decode().split("\n\n") if event]
        self.assertEqual(events[-1], "data: [DONE]")
        return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]

    def refused(self, words, server="", http=""):
        """nginx refuses a configuration, with the words."""
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([NGINX, "-t", *write_configuration(folder, server, http)], capture_output=True, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn(words, done.stderr.decode())

    def is_idle(self):
        stats = ask(self.engine_socket, {"op": "stats"})
        return stats["requests_running"] + stats["requests_waiting"] + stats["kv_blocks_used"] == 0
