#!/usr/bin/env python3
"""What nginx brings itself, before the API: limits, access rules, headers on every answer, and connections that are kept."""
import base64
import gzip
import json
import os
import socket
import time

import server
from server import HELLO, LONG, Connection, harness


class Suite(server.Suite):
    ENGINE = ("--socket-mode", "0666", "--allow-uid", "33")  # www-data
    HTTP = """
    mixtral_engine main unix:{folder}/engine.sock;
    mixtral_engine none unix:{folder}/nobody.sock;
    limit_conn_zone $host zone=connections:1m;
    limit_req_zone $host zone=burst:1m rate=1r/m;
    limit_req_zone $host zone=cors:1m rate=1r/m;
    """
    SERVER = """
        location /v1/ { mixtral_api main; mixtral_keys off; }
        location /connections/ { mixtral_api main; mixtral_keys off; limit_conn connections 2; limit_conn_status 429; }
        location /burst/ { mixtral_api main; mixtral_keys off; limit_req zone=burst burst=2 nodelay; limit_req_status 429; }
        location /asked/ { mixtral_api main; mixtral_keys off; auth_request /auth; }
        location /asked/keys/ { mixtral_api main; mixtral_keys {folder}/keys; auth_request /auth; }
        location = /auth {
            internal;
            if ($http_x_user = "") { return 401; }
            if ($http_x_user = "mallory") { return 403; }
            if ($http_x_user = "broken") { return 500; }
            return 204;
        }
        location /basic/ { mixtral_api main; mixtral_keys off; auth_basic "models"; auth_basic_user_file {folder}/users; }
        location /rules/ { mixtral_api main; mixtral_keys off; allow 10.0.0.0/8; allow unix:; deny all; }
        location /rules/closed/ { mixtral_api main; mixtral_keys off; allow 10.0.0.0/8; deny all; }
        location /rules/either/ {
            mixtral_api main; mixtral_keys {folder}/keys; satisfy any; allow unix:; deny all;
            auth_basic "models"; auth_basic_user_file {folder}/users;
        }
        location /pages/ { mixtral_api none; mixtral_keys off; error_page 503 = @busy; }
        location @busy { default_type application/json; return 503 '{"own":1}'; }
        location /cors/ {
            mixtral_api main;
            mixtral_keys {folder}/keys;
            client_max_body_size 1k;
            add_header Access-Control-Allow-Origin "*" always;
            add_header Access-Control-Allow-Headers "Authorization, Content-Type" always;
        }
        location /blocks/ {
            mixtral_api main;
            mixtral_keys {folder}/keys;
            if ($http_origin) { add_header X-If yes always; }
            limit_except GET POST { deny all; }
        }
        location = /page { mixtral_chat main; if ($http_origin) { add_header X-If yes always; } }
        location = /metrics { mixtral_metrics main; if ($http_origin) { add_header X-If yes always; } }
        location /cors/limited/ { mixtral_api main; mixtral_keys off; limit_req zone=cors; add_header X-Limited yes always; }
        location /cors/gone/ { mixtral_api none; mixtral_keys off; add_header X-Gone yes always; }
        location /packed/ { mixtral_api main; mixtral_keys off; gzip on; gzip_types application/json; gzip_min_length 1; gzip_proxied any; }
        location /rate/ { mixtral_api main; mixtral_keys off; limit_rate 8k; }
        location /patience/ { mixtral_api main; mixtral_keys off; client_body_timeout 500ms; client_body_buffer_size 1k; }
    """

    @classmethod
    def start_engine(cls):
        with open(os.path.join(cls.folder, "users"), "w", encoding="ascii") as file:
            file.write("ada:{PLAIN}lovelace\n")
        os.chmod(os.path.join(cls.folder, "users"), 0o644)
        cls.key = harness.run("key", "new", os.path.join(cls.folder, "keys")).stdout.decode().strip()
        super().start_engine()

    @staticmethod
    def basic(text):
        return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}

    def connection(self):
        connection = Connection(os.path.join(self.folder, "http.sock"))
        self.addCleanup(connection.close)
        return connection

    def raw(self, request):
        """All that comes back until nginx closes."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(harness.SECONDS)
            client.connect(os.path.join(self.folder, "http.sock"))
            client.sendall(request)
            answer = b""
            while got := client.recv(65536):
                answer += got
        return answer

    # ---- Limits ----

    def test_limit_conn(self):
        streams = [self.send("/connections/chat/completions", dict(HELLO, stream=True, **LONG)) for _ in range(2)]
        for stream in streams:
            stream.readline()
        error = self.error(429, "/connections/chat/completions", HELLO)
        self.assertEqual((error["type"], error["code"]), ("rate_limit_error", "rate_limit_exceeded"))
        self.get("/v1/chat/completions", HELLO)
        for stream in streams:
            stream.close()
            stream.connection.close()
        self.until(lambda: self.send("/connections/chat/completions", HELLO).status == 200, 20)
        self.until(self.is_idle, 20)

    def test_limit_req(self):
        statuses = []
        for _ in range(5):
            response = self.send("/burst/chat/completions", HELLO)
            response.read()
            statuses.append(response.status)
        self.assertEqual(statuses, [200, 200, 200, 429, 429])
        self.assertEqual(self.error(429, "/burst/models")["type"], "rate_limit_error")

    def test_limit_rate(self):
        begin = time.monotonic()
        chunks = self.chunks("/rate/completions", {"prompt": "One", "max_tokens": 100, "ignore_eos": True,
                                                   "stream_options": {"include_usage": True}})
        self.assertEqual(chunks[-1]["usage"]["completion_tokens"], 100)
        self.assertGreater(time.monotonic() - begin, 1) # some 20 KB
        self.assertEqual(self.get("/rate/completions", {"prompt": "One", "max_tokens": 3})["usage"]["completion_tokens"], 3)

    def test_a_body_that_does_not_come(self):
        begin = time.monotonic()
        answer = self.raw(b"POST /patience/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n{")
        self.assertTrue(answer == b"" or answer.startswith(b"HTTP/1.1 408"), answer)
        self.assertLess(time.monotonic() - begin, 10)
        self.assertTrue(self.is_idle())

    # ---- Access ----

    def test_auth_request(self):
        self.get("/asked/chat/completions", HELLO, headers={"X-User": "ada"})
        self.assertEqual(len(self.get("/asked/tokenize", {"content": "word " * 5000}, headers={"X-User": "ada"})["tokens"]), 5001)
        chunks = self.send("/asked/completions", {"prompt": "a", "max_tokens": 2, "stream": True}, headers={"X-User": "ada"}).read()
        self.assertTrue(chunks.endswith(b"data: [DONE]\n\n"))
        self.assertEqual(self.error(401, "/asked/chat/completions", HELLO)["code"], "invalid_api_key")
        self.assertEqual(self.error(403, "/asked/chat/completions", HELLO, headers={"X-User": "mallory"})["type"], "permission_error")
        self.assertEqual(self.error(500, "/asked/models", headers={"X-User": "broken"})["type"], "server_error")
        # both must agree where there are keys too
        self.error(401, "/asked/keys/models", headers={"X-User": "ada"})
        self.error(403, "/asked/keys/models", headers={"X-User": "mallory", "X-Api-Key": self.key})
        self.get("/asked/keys/models", headers={"X-User": "ada", "X-Api-Key": self.key})

    def test_auth_basic(self):
        self.get("/basic/models", headers=self.basic("ada:lovelace"))
        for headers in {}, self.basic("ada:wrong"):
            response = self.send("/basic/models", headers=headers)
            self.assertEqual((response.status, response.headers["WWW-Authenticate"]), (401, 'Basic realm="models"'))
            self.assertTrue(json.loads(response.read())["error"]["message"])

    def test_rules(self):
        self.get("/rules/models")
        self.get("/rules/chat/completions", HELLO)
        self.assertEqual(self.error(403, "/rules/closed/models")["type"], "permission_error")
        self.error(403, "/rules/closed/chat/completions", {"prompt": "a" * 100000})
        # `satisfy` is about nginx's own rules: a key is needed besides
        self.error(401, "/rules/either/models")
        self.get("/rules/either/models", headers={"X-Api-Key": self.key})

    def test_error_page(self):
        # ours, which is no refusal of nginx's, stays; what nginx refuses by itself may be a page
        self.assertIn("does not answer", self.error(503, "/pages/models")["message"])

    # ---- Headers ----

    def test_cors_on_every_answer(self):
        key = {"Authorization": "Bearer " + self.key}
        for status, path, body, more in ((200, "/cors/models", None, {"headers": key}), (200, "/cors/chat/completions", HELLO, {"headers": key}),
                                         (200, "/cors/chat/completions", dict(HELLO, stream=True), {"headers": key}),
                                         (204, "/cors/chat/completions", None, {"method": "OPTIONS"}),
                                         (400, "/cors/chat/completions", {}, {"headers": key}), (401, "/cors/chat/completions", HELLO, {}),
                                         (404, "/cors/nothing", None, {"headers": key}),
                                         (404, "/cors/models/x", None, {"headers": key}),
                                         (405, "/cors/completions", None, {"headers": key}),
                                         (413, "/cors/completions", {"prompt": "a" * 5000}, {"headers": key})):
            with self.subTest(path=path, status=status):
                response = self.send(path, body, **more)
                response.read()
                self.assertEqual(response.status, status)
                self.assertEqual(response.headers["Access-Control-Allow-Origin"], "*")
                self.assertEqual(response.headers["Access-Control-Allow-Headers"], "Authorization, Content-Type")
        self.get("/cors/limited/models")
        for path, name in (("/cors/limited/models", "X-Limited"), ("/cors/gone/models", "X-Gone")):
            response = self.send(path)
            response.read()
            self.assertEqual((response.status, response.headers[name]), (503, "yes"))

    def test_blocks_in_a_location(self):
        # the location's handler runs there with the block's settings
        for headers, also in (({}, None), ({"Origin": "https://a"}, "yes")):
            key = dict(headers, **{"X-Api-Key": self.key})
            for path, body in (("/blocks/models", None), ("/blocks/chat/completions", HELLO), ("/blocks/tokenize", {"content": "a" * 2 ** 21})):
                response = self.send(path, body, headers=key)
                self.assertEqual((response.status, response.headers["X-If"]), (200, also), response.read())
                response.read()
            self.error(401, "/blocks/chat/completions", HELLO, headers=headers)
            self.error(404, "/blocks/x", headers=headers)
            self.assertIn(b"mixtral_num_requests_running", self.send("/metrics", headers=headers).read())
            self.assertIn(b"<html", self.send("/page", headers=headers).read())
        self.error(403, "/blocks/models", method="DELETE")

    def test_gzip(self):
        for path in "/packed/models", "/packed/models/x":
            response = self.send(path, headers={"Accept-Encoding": "gzip"})
            self.assertEqual(response.headers["Content-Encoding"], "gzip")
            self.assertTrue(json.loads(gzip.decompress(response.read())))

    # ---- Connections ----

    def test_a_connection_is_kept(self):
        connection = self.connection()
        kept = None
        for i in range(3):
            for status, method, path, body in ((200, "POST", "/v1/chat/completions", HELLO), (200, "GET", "/v1/models", None),
                                               (200, "POST", "/v1/chat/completions", dict(HELLO, stream=True)),
                                               (400, "POST", "/v1/chat/completions", {"messages": i}), (404, "GET", "/v1/x", None),
                                               (404, "POST", "/v1/x", {"prompt": "a" * 50000}), (200, "HEAD", "/v1/models", None),
                                               (204, "OPTIONS", "/v1/models", None), (405, "POST", "/v1/models", {}),
                                               (400, "POST", "/v1/completions", {"prompt": "word " * 9000}),
                                               (403, "POST", "/rules/closed/completions", {"prompt": "b" * 50000})):
                connection.request(method, path, None if body is None else json.dumps(body))
                response = connection.getresponse()
                text = response.read()
                self.assertEqual(response.status, status, (method, path, text))
                self.assertIsNot(connection.sock, None, (method, path))
                kept = kept or connection.sock
                self.assertIs(connection.sock, kept)

    def test_requests_behind_each_other(self):
        body = json.dumps(dict(HELLO, stream=True)).encode()
        post = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        last = b"GET /v1/models HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        answer = self.raw(post * 3 + last)
        self.assertEqual((answer.count(b"HTTP/1.1 200 OK"), answer.count(b"data: [DONE]")), (4, 3))
        self.assertIn(b'"object":"list"', answer.split(b"HTTP/1.1 200 OK")[-1].replace(b" ", b""))

    def test_http_1_0(self):
        body = json.dumps(dict(HELLO, stream=True)).encode()
        answer = self.raw(b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        head, text = answer.split(b"\r\n\r\n", 1)
        self.assertNotIn(b"chunked", head)
        self.assertTrue(text.startswith(b"data: {") and text.endswith(b"data: [DONE]\n\n"), text)

    def test_a_stream_that_is_refused_is_an_error_in_one(self):
        connection = self.connection()
        for _ in range(2):
            connection.request("POST", "/v1/chat/completions", json.dumps(dict(HELLO, stream=True, temperature=-3)))
            response = connection.getresponse()
            self.assertEqual((response.status, json.loads(response.read())["error"]["param"]), (400, "temperature"))


if __name__ == "__main__":
    harness.main()
