"""The embedders that are included in the package."""

from __future__ import annotations

import email.utils
import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pytest

import entityframes as ef
from entityframes.embedding import Embedder, embedder_of_model, load_embedder

TEXTS = ["The quick brown fox", "the quick brown fox", "Über allen Gipfeln ist Ruh", "", "x" * 100_000, "🦊 fox"]


def test_hashing_is_deterministic() -> None:
    """The same vectors in another process with another hash seed, in any batch, of length 1, ignoring case."""
    embedder = ef.HashingEmbedder(64)
    vectors = embedder.embed(TEXTS)
    assert vectors.shape == (6, 64)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(np.delete(vectors, 3, 0), axis=1), 1, atol=1e-5)
    assert np.array_equal(vectors[0], vectors[1])
    assert embedder.embed([]).shape == (0, 64)
    assert np.array_equal(np.concatenate([embedder.embed([text]) for text in TEXTS]), vectors)
    script = (
        "import sys, json, entityframes as ef; "
        "print(json.dumps(ef.HashingEmbedder(64).embed(json.loads(sys.argv[1])).tolist()))"
    )
    run = subprocess.run([sys.executable, "-c", script, json.dumps(TEXTS)], capture_output=True, text=True, timeout=120)
    assert np.array_equal(np.array(json.loads(run.stdout), np.float32), vectors), run.stderr


def test_hashing_vectors_are_those_of_earlier_versions() -> None:
    """Stores have them under the name hashing-16, and vectors of different versions must be comparable."""
    vectors = ef.HashingEmbedder(16).embed(["two words of a text, and TWO more: é", "x"])
    first = [0.5997, 0.2822, -0.0706, -0.2117, -0.4233, 0, 0.2293, -0.1588, -0.0706, 0.1764, 0.0706, 0, 0.0176, -0.3881,
             -0.2469, -0.0309]  # fmt: skip
    assert np.allclose(vectors[0], first, atol=1e-4)
    assert {n: round(float(x), 4) for n, x in enumerate(vectors[1]) if x} == {4: -0.9545, 8: 0.2983}


def test_hashing_keeps_characters_that_are_not_ascii_in_their_word() -> None:
    """Whatever their bytes: ŀ ends in the lowest one that is not ASCII."""
    vectors = ef.HashingEmbedder(256).embed(["gardenŀriver", "gardenłriver", "river"])
    assert abs(vectors[0] @ vectors[2] - vectors[1] @ vectors[2]) < 0.1


def test_hashing_puts_texts_that_share_words_near() -> None:
    vectors = ef.HashingEmbedder(256).embed(
        ["install the plugin with bundler", "how to install a plugin", "the train to the airport leaves at nine"]
    )
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1


def test_embedders_are_found_by_name() -> None:
    assert load_embedder("hashing", dim=32).dim == 32
    assert isinstance(embedder_of_model("hashing-32"), Embedder)
    assert embedder_of_model("nobody-knows") is None
    with pytest.raises(ef.EmbedderError, match="no embedder named 'nobody'.*hashing"):
        load_embedder("nobody")
    with pytest.raises(ef.EmbedderError, match="cannot create"):
        load_embedder("hashing", depth=3)


def test_wordllama_knows_meaning() -> None:
    """Its weights are part of its package: no download, and texts with similar meaning are close."""
    embedder = ef.WordLlamaEmbedder()
    vectors = embedder.embed(["a dog barked", "the puppy made noise", "interest rates rose"])
    assert vectors.shape == (3, embedder.dim)
    lengths = np.linalg.norm(vectors, axis=1)
    cosine = (vectors @ vectors.T) / np.outer(lengths, lengths)
    assert cosine[0, 1] > cosine[0, 2] + 0.1


def test_wordllama_and_long_texts() -> None:
    """Only the beginning of a long text counts, which limits time and memory; the limit is part of the name."""
    embedder = ef.WordLlamaEmbedder()
    long, short = embedder.embed(["a dog barked. " * 100_000, ("a dog barked. " * 100)[:800]])
    assert np.allclose(long, short)
    other = embedder_of_model(ef.WordLlamaEmbedder(max_chars=12).name)
    assert other is not None
    assert other.name != embedder.name
    assert np.allclose(other.embed(["a dog barked. And slept."]), other.embed(["a dog barked"]))


class Handler(http.server.BaseHTTPRequestHandler):
    """Implements /v1/embeddings: as many numbers as requested, the first of which is the text's length."""

    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server.requests.append((self.path, self.headers.get("authorization"), body))
        status, headers, answer = server.answers.pop(0) if server.answers else (200, {}, None)
        if answer is None:
            dim = body.get("dimensions", 4)
            data = [
                {"index": n, "embedding": [float(len(text)), *[1.0] * (dim - 1)]}
                for n, text in enumerate(body["input"])
            ]
            answer = {"data": data[::-1]}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *args: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[Any]:
    """A real HTTP server; `answers` are returned before its default answers."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.requests, running.answers = [], []  # type: ignore[attr-defined]
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        running.url = f"http://127.0.0.1:{running.server_address[1]}/v1"  # type: ignore[attr-defined]
        yield running
        running.shutdown()


def test_openai_requests(server: Any) -> None:
    """Order by index, limits of items and tokens, the requested dimension, and a key that is sent and not shown."""
    embedder = ef.OpenAIEmbedder("m", base_url=server.url, api_key="sk-canary", max_batch=2, max_tokens=10)
    assert embedder.dim == 4
    vectors = embedder.embed(["a", "bb", "ccc", "d" * 40, "e"])
    assert vectors[:, 0].tolist() == [1, 2, 3, 40, 1]
    sent = [body["input"] for _, _, body in server.requests[1:]]
    assert sent == [["a", "bb"], ["ccc"], ["d" * 40], ["e"]]
    assert {path for path, _, _ in server.requests} == {"/v1/embeddings"}
    assert {key for _, key, _ in server.requests} == {"Bearer sk-canary"}
    assert "canary" not in repr(embedder) + str(vars(embedder))
    assert ef.OpenAIEmbedder("m", dim=8, base_url=server.url).embed(["a"]).shape == (1, 8)


@pytest.mark.parametrize(
    ("status", "headers", "error", "message"),
    [
        (429, {"retry-after": "7"}, ef.EmbedderBusyError, "slow down"),
        (429, {"retry-after": "inf"}, ef.EmbedderBusyError, "slow down"),
        (503, {}, ef.EmbedderBusyError, "503"),
        (401, {}, ef.EmbedderError, "rejected"),
        (400, {}, ValueError, "rejected the text"),
    ],
)
def test_openai_refusals(server: Any, status: int, headers: dict, error: type[Exception], message: str) -> None:
    """Busy, unavailable, or an error of this text: distinguished by the status."""
    embedder = ef.OpenAIEmbedder("m", dim=4, base_url=server.url, api_key="sk-canary")
    server.answers.append((status, headers, {"error": {"message": "slow down"}}))
    with pytest.raises(error, match=message) as caught:
        embedder.embed(["a"])
    assert "canary" not in str(caught.value)
    if status == 429:
        assert caught.value.retry_after == (7.0 if headers["retry-after"] == "7" else None)


def test_retry_after_may_be_a_date(server: Any) -> None:
    """The seconds until then, or none if the date is in the past."""
    embedder = ef.OpenAIEmbedder("m", dim=4, base_url=server.url)
    for seconds in (30, -30):
        server.answers.append((429, {"retry-after": email.utils.formatdate(time.time() + seconds, usegmt=True)}, {}))
        with pytest.raises(ef.EmbedderBusyError) as caught:
            embedder.embed(["a"])
        assert caught.value.retry_after == pytest.approx(max(seconds, 0), abs=2)


def test_openai_garbage_and_silence(server: Any) -> None:
    embedder = ef.OpenAIEmbedder("m", dim=4, base_url=server.url)
    for answer in ({"data": [{"index": 0, "embedding": "no"}]}, {}, {"data": [{"embedding": [1.0]}]}, {"data": 5}, [1]):
        server.answers.append((200, {}, answer))
        with pytest.raises(ef.EmbedderError, match="not a list of vectors"):
            embedder.embed(["a"])
    with pytest.raises(ef.EmbedderBusyError, match="did not respond"):
        ef.OpenAIEmbedder("m", dim=4, base_url="http://127.0.0.1:9").embed(["a"])


@pytest.mark.slow
def test_openai_through_the_store(server: Any, store: ef.EntityStore) -> None:
    """Rate limits are respected as the server requests, and a rejected text is found."""
    texts = pl.DataFrame({"id": [f"{n}" for n in range(8)], "text": [f"text {n}" for n in range(8)]})
    store.upsert(ef.entities(texts, "t", id="id", content="text"), progress=False)
    server.answers += [(429, {"retry-after": "0"}, {}), (400, {}, {"error": "no"}), *[(200, {}, None)] * 3]
    embedder = ef.OpenAIEmbedder("m", dim=4, base_url=server.url)
    assert store.embed(embedder, progress=False).counts["embedded"] == 8
    assert len(store.search("text 3", k=3, embedder=embedder)) == 3
