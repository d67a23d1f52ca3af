"""The embedding commands."""

from __future__ import annotations

import http.server
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import polars as pl
import pytest

import entityframes as ef
from entityframes.cli.embedding import _wait_for_jobs
from tests.test_cli import Run

HASHING = ["--embedder", "hashing", "--option", "dim=32"]


@pytest.fixture
def run(url: str, tmp_path) -> Run:
    with ef.connect(url) as store:
        for n, text in enumerate(["river stone", "green garden", "winter garden"]):
            store.upsert_entity("page", f"p{n}", text, {"n": n})
    return Run(url, tmp_path)


def test_embed_and_search(run: Run) -> None:
    """Due entities are embedded once; searches find the model by themselves, and exit with 1 if nothing is found."""
    code, out, _ = run("embed", *HASHING)
    assert (code, "3 embedded" in out) == (0, True)
    report = json.loads(run("embed", "--json")[1])
    assert (report["ok"], report["space"], report["counts"]["embedded"]) == (True, "hashing-32", 0)
    code, out, _ = run("search", "garden in winter", "-k", "1", "--json")
    assert (code, json.loads(out)["id"]) == (0, "p2")
    code, out, _ = run("search", "garden", "--type", "page", "--mode", "text", "--where", "n = 1", "--json")
    assert [json.loads(line)["id"] for line in out.splitlines()] == ["p1"]
    assert run("search", "xylophone", "--mode", "text")[0] == 1
    code, out, _ = run("search", "garden in winter", "-k", "1", "--json", *HASHING)
    assert (code, json.loads(out)["id"]) == (0, "p2")
    assert run("search", "garden", "--embedder", "hashing", "--option", "dim=64")[0] == 2


@pytest.mark.slow
def test_a_search_by_words_leaves_its_index(run: Run, url: str, engine: str, tmp_path: Path) -> None:
    """The next search is then quick; a file that is read-only, or is being read, can be searched all the same."""
    assert run("search", "x", "--mode", "text", "--namespace", "elsewhere")[0] == 2
    if engine == "duckdb":
        with ef.connect(url, read_only=True):
            script = [sys.executable, "-m", "entityframes", "search", "garden", "--mode", "text", "--store", url]
            assert subprocess.run(script, capture_output=True, text=True).stdout.count("garden") == 4
    with ef.connect(url, read_only=True) as store:
        assert not store._engine.text.state().complete
    assert run("search", "garden", "--mode", "text")[1].count("garden") == 4
    with ef.connect(url, read_only=True) as store:
        assert store._engine.text.state().complete
        assert not store.search("garden", mode="text").is_empty()


def test_jobs_and_spaces(run: Run) -> None:
    """Jobs and spaces are listed; a second model gets its own space and becomes active."""
    assert run("jobs", "--state", "pending")[1].count("pending") == 3
    run("embed", *HASHING)
    assert run("jobs", "--state", "done")[1].count("done") == 3
    assert run("embed", "--embedder", "hashing", "--option", "dim=64", "--space", "second")[0] == 0
    assert run("spaces", "--activate", "second")[0] == 0
    spaces = [json.loads(line) for line in run("spaces", "--json")[1].splitlines()]
    assert [(row["space"], row["active"], row["embedded"]) for row in spaces] == [
        ("hashing-32", False, 3), ("second", True, 3),
    ]  # fmt: skip
    assert run("spaces", "--drop", "hashing-32")[0] == 0
    code, _, errors = run("jobs", "--enqueue", "--retry-failed")
    assert (code, "0 entities queued" in errors) == (0, True)


def test_passages(run: Run, url: str) -> None:
    """A space is made with its options, which later runs use; searches print passages; unused vectors are deleted."""
    parts = ["river stone", "green garden", "winter garden"]
    with ef.connect(url) as store:
        store.upsert_entity("page", "long", "\n\n".join(f"# {part}\n\nThe {part}." for part in parts))
    passages = ["--passages", "40", "--overlap", "5", "--passage-format", "text"]
    for wrong in (passages[2:], ["--passages", "40", "--overlap", "40"]):
        assert run("embed", *HASHING, *wrong)[0] == 2
    assert run("embed", *HASHING, *passages)[0] == 0
    [space] = [json.loads(line) for line in run("spaces", "--json")[1].splitlines()]
    assert json.loads(space["passages"]).items() >= {"size": 40, "overlap": 5, "format": "text"}.items()
    code, _, errors = run("embed", *HASHING, "--passages", "50")
    assert (code, "passages cut with" in errors) == (2, True)
    found = run(
        "search", "garden", "--mode", "text", "--type", "page", "--where", "n IS NULL", "--per-entity", "2", "--json"
    )[1].splitlines()
    assert [json.loads(line)["id"] for line in found] == ["long", "long"]
    assert all("garden" in json.loads(line)["passage"] for line in found)
    with ef.connect(url) as store:
        store.delete_entity("page", "p0")
    code, _, errors = run("spaces", "--vacuum")
    assert (code, "1 unused vectors deleted" in errors) == (0, True)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["duckdb"], indirect=True)
def test_a_watching_worker_waits_for_its_embedder(run: Run) -> None:
    """It reports the error, retries, and releases its job when it is stopped."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        away = f"base_url=http://127.0.0.1:{server.server_address[1]}"
    options = ["--embedder", "openai", "--option", "model=m", "--option", "dim=8", "--option", away]
    words = [sys.executable, "-m", "entityframes", "embed", "--watch", *options, "--store", run.url]
    worker = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert worker.stderr is not None
    assert "did not respond" in worker.stderr.readline()
    assert "retrying" in worker.stderr.readline()
    worker.send_signal(signal.SIGTERM)
    out, errors = worker.communicate(timeout=120)
    assert (worker.returncode, "Traceback" in errors) == (0, False)
    assert "1 cancelled" in out
    assert run("jobs", "--state", "pending")[1].count("pending") == 3


@pytest.mark.slow
def test_the_pauses_of_a_watching_worker(run: Run, url: str) -> None:
    """They double up to five seconds while there is nothing to do."""
    pauses: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0.0)
            return len(pauses) == 8

    with ef.connect(url) as store:
        store.embed(ef.HashingEmbedder(32), progress=False)
        assert not _wait_for_jobs(store, Stop())
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]


def test_embed_tells_what_is_left_and_how_to_go_on(run: Run) -> None:
    """Due entities that are not in a job, and failed ones: the commands that it names queue them."""
    run("embed", *HASHING)
    with ef.connect(run.url) as store:
        store.upsert_entity("page", "p9", "a late page", embed=False)
    code, out, errors = run("embed")
    assert (code, "nothing is queued" in out) == (0, True)
    assert "1 due but not in an open job: entityframes jobs --enqueue --space hashing-32" in errors
    assert "1 entities queued" in run("jobs", "--enqueue", "--space", "hashing-32")[2]
    assert "1 embedded" in run("embed")[1]
    away = [
        "--embedder",
        "openai",
        "--option",
        "model=m",
        "--option",
        "dim=8",
        "--option",
        "base_url=http://127.0.0.1:9",
    ]
    code, out, errors = run("embed", *away, "--space", "far", "--max-attempts", "1")
    assert (code, "4 failed" in out) == (1, True)
    assert "did not respond" in errors
    assert "4 due but not in an open job: entityframes jobs --retry-failed --space far" in errors
    assert "4 entities queued again" in run("jobs", "--retry-failed", "--space", "far")[2]


def test_a_search_before_anything_is_embedded(run: Run) -> None:
    """Nothing is found because nothing is embedded yet: a note names the command to run."""
    with ef.connect(run.url) as store:
        store.delete(store.scan().collect())
    run("embed", *HASHING)
    with ef.connect(run.url) as store:
        store.upsert(pl.DataFrame({"entity_type": "note", "id": ["a", "b"], "content": "text"}), progress=False)
    code, _, message = run("search", "text")
    assert (code, "note: 2 due for embedding: entityframes embed" in message) == (1, True)


def test_what_is_in_no_job_is_queued_on_the_way(run: Run) -> None:
    """A search reports what is missing and names the command that embeds it, which works."""
    run("embed", *HASHING)
    with ef.connect(run.url) as store:
        store.delete(store.scan().collect())
        store.upsert(
            pl.DataFrame({"entity_type": "note", "id": ["a", "b"], "content": "text"}), progress=False, embed=False
        )
    code, _, message = run("search", "text")
    assert (code, "2 due for embedding, 2 of them not in a job: entityframes embed --enqueue" in message) == (1, True)
    assert json.loads(run("embed", "--json")[1])["in_no_job"] == 2
    code, out, message = run("embed", "--enqueue")
    assert (code, "2 embedded" in out, "2 entities queued" in message) == (0, True, True)
    assert run("search", "text")[0] == 0
    code, out, _ = run("embed", "--enqueue", "--space", "second", "--embedder", "hashing", "--option", "dim=16")
    assert (code, "2 embedded" in out) == (0, True)


@pytest.mark.parametrize("words", [["search", "x", "--mode", "text"], ["search", "x"], ["jobs", "--enqueue"]])
def test_an_unknown_type_is_an_error(run: Run, words: list[str]) -> None:
    run("embed", *HASHING)
    code, out, message = run(*words, "--type", "pages")
    assert (code, out, "no entities of type 'pages': the store has page" in message) == (2, "", True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["embed", "--embedder", "nobody"], "no embedder named 'nobody'"),
        (["embed", "--embedder", "hashing", "--option", "dim"], "NAME=VALUE"),
        (["embed", "--embedder", "hashing", "--option", "dim=4"], "cannot create the embedder hashing: dim must be between 8 and 16,384, got 4"),
        (["search", "x"], "nothing is embedded yet"),
        (["spaces", "--activate", "nowhere"], "no space named 'nowhere'"),
        (["embed", "--embedder", "openai", "--option", "model=m", "--option", "base_url=http://127.0.0.1:9/v1"],
         "did not respond"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line(run: Run, words: list[str], message: str) -> None:
    code, _, errors = run(*words)
    assert code == 2
    assert message in errors
    assert "Traceback" not in errors
