#!/usr/bin/env python3
"""Clients from PyPI, unchanged: openai, langchain-openai."""
import asyncio
import os

import httpx
import openai
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

import server
from server import ask, harness

HELLO = [{"role": "user", "content": "Say hello in French."}]
STORY = [{"role": "user", "content": "Tell me a very long story."}]
GREEDY = {"messages": HELLO, "max_tokens": 8, "temperature": 0}


class Suite(server.Suite):
    ENGINE = ("--socket-mode", "0666", "--allow-uid", str(33 if os.getuid() == 0 else os.getuid()))
    HTTP = "mixtral_engine main unix:{folder}/engine.sock;"
    SERVER = """
        location /v1/ { mixtral_api main; mixtral_keys off; }
        location /small/ { mixtral_api main; mixtral_keys off; client_max_body_size 100; }
        location /closed/ { mixtral_api main; mixtral_keys off; deny all; }
        location /locked/ { mixtral_api main; mixtral_keys {folder}/keys; }
    """

    @classmethod
    def start_engine(cls):
        done = harness.run("key", "new", os.path.join(cls.folder, "keys"), "--name", "alice")
        assert done.returncode == 0, done.stderr
        cls.key = done.stdout.decode().strip()
        super().start_engine()
        cls.model = ask(cls.engine_socket, {"op": "models"})["models"][0]["name"]

    def setUp(self):
        self.expected = self.get("/v1/chat/completions", dict(GREEDY))["choices"][0]["message"]["content"]

    def client(self, at="v1", key="none", kind=openai.OpenAI):
        asynchronous = kind is openai.AsyncOpenAI
        transport = (httpx.AsyncHTTPTransport if asynchronous else httpx.HTTPTransport)(uds=os.path.join(self.folder, "http.sock"))
        http = (httpx.AsyncClient if asynchronous else httpx.Client)(transport=transport)
        return kind(base_url=f"http://localhost/{at}", api_key=key, max_retries=0, http_client=http)

    def langchain(self, **more):
        http = httpx.Client(transport=httpx.HTTPTransport(uds=os.path.join(self.folder, "http.sock")))
        self.addCleanup(http.close)
        return {"model": self.model, "api_key": "none", "base_url": "http://localhost/v1", "max_retries": 0, "http_client": http, **more}

    def test_openai_answers(self):
        with self.client() as client:
            answer = client.chat.completions.create(
                model=self.model, store=False, metadata={"a": "b"}, parallel_tool_calls=True, service_tier="auto",
                reasoning_effort="low", user="me", response_format={"type": "text"}, tool_choice="none", logit_bias={}, seed=1, **GREEDY)
            self.assertEqual(answer.choices[0].message.content, self.expected)
            self.assertGreater(answer.usage.prompt_tokens_details.cached_tokens, -1)
            stream = client.chat.completions.create(model=self.model, stream=True, stream_options={"include_usage": True}, **GREEDY)
            chunks = list(stream)
            self.assertEqual("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), self.expected)
            self.assertEqual(chunks[-1].usage.completion_tokens, answer.usage.completion_tokens)
            self.assertEqual([model.id for model in client.models.list()], [self.model])
            text = client.completions.create(model=self.model, prompt="One, two,", max_tokens=4, temperature=0).choices[0].text
            self.assertIn("three", text)
            packed = client.embeddings.create(model=self.model, input=["one", "two"]).data
            plain = client.embeddings.create(model=self.model, input="two", encoding_format="float").data
            self.assertEqual(len(packed), 2)
            self.assertLess(max(abs(a - b) for a, b in zip(packed[1].embedding, plain[0].embedding)), 1e-7)

    def test_openai_errors(self):
        def refused(kind, words, at="v1", key="none", **changes):
            with self.client(at, key) as client, self.assertRaises(kind) as caught:
                client.chat.completions.create(**{"model": self.model, **GREEDY, **changes})
            self.assertIn(words, str(caught.exception))
            return caught.exception
        self.assertEqual(refused(openai.BadRequestError, "temperature", temperature="hot").param, "temperature")
        self.assertEqual(refused(openai.NotFoundError, "dance", model="dance").code, "model_not_found")
        refused(openai.AuthenticationError, "no such API key", "locked", "wrong")
        refused(openai.PermissionDeniedError, "denied", "closed")
        self.assertEqual(refused(openai.APIStatusError, "larger", "small", user="x" * 100).status_code, 413)
        with self.client("locked", self.key) as client:
            self.assertEqual(client.chat.completions.create(model=self.model, **GREEDY).choices[0].message.content, self.expected)

    def test_openai_aborts(self):
        body = {"model": self.model, "messages": STORY, "max_tokens": 3000}
        with self.client() as client, client.chat.completions.create(stream=True, **body) as stream:
            for _, _ in zip(range(5), stream):
                self.assertFalse(self.is_idle())
        self.until(self.is_idle, 5)

        async def cancelled():
            async with self.client(kind=openai.AsyncOpenAI) as client:
                task = asyncio.create_task(client.chat.completions.create(**body))
                while self.is_idle():
                    await asyncio.sleep(0.02)
                task.cancel()
                await asyncio.wait([task])
                return task.cancelled()
        self.assertTrue(asyncio.run(cancelled()))
        self.until(self.is_idle, 5)

    def test_langchain(self):
        chat = ChatOpenAI(**self.langchain(temperature=0, max_tokens=8))
        self.assertEqual(chat.invoke(HELLO).content, self.expected)
        chunks = list(ChatOpenAI(**self.langchain(temperature=0, max_tokens=8, stream_usage=True)).stream(HELLO))
        self.assertEqual("".join(chunk.content for chunk in chunks), self.expected)
        self.assertGreater(sum((chunk.usage_metadata or {}).get("input_tokens", 0) for chunk in chunks), 0)
        # without its own tokenizer, which it would fetch and which is not this model's
        embeddings = OpenAIEmbeddings(**self.langchain(check_embedding_ctx_length=False))
        self.assertEqual([len(vector) for vector in embeddings.embed_documents(["one", "two"])], [576, 576])
        with self.assertRaisesRegex(openai.NotFoundError, "dance"):
            ChatOpenAI(**self.langchain(model="dance")).invoke(HELLO)
        stream = ChatOpenAI(**self.langchain(max_tokens=3000)).stream(STORY)
        for _, _ in zip(range(5), stream):
            pass
        self.assertFalse(self.is_idle())
        stream.close()
        self.until(self.is_idle, 5)


if __name__ == "__main__":
    harness.main()
