"""Embedders that fail, are busy or are not installed: no failure is recorded that the texts did not cause."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest

import entityframes as ef
from tests.command import run as run_command
from tests.test_embedding import Recording, embed, notes


class Giving(Recording):
    """Returns a given value instead of vectors for texts that contain a word."""

    def __init__(self, value: float, word: str = "", **options: Any) -> None:
        super().__init__(**options)
        self._value, self._word = value, word

    def embed(self, texts: Sequence[str], /) -> np.ndarray[Any, Any]:
        vectors = np.array(super().embed(texts))
        vectors[[self._word in text for text in texts]] = self._value
        return vectors


class Raising(Recording):
    """Raises for every text."""

    def embed(self, texts: Sequence[str], /) -> np.ndarray[Any, Any]:
        raise RuntimeError("CUDA error: out of memory")


BROKEN = {
    "nan": lambda: Giving(np.nan), "infinity": lambda: Giving(-np.inf), "zeros": lambda: Giving(0.0), "raises": Raising,
    "one by one": lambda: Giving(np.nan, max_batch=1), "shape": lambda: Shapeless(),
    "zeros and nan": lambda: Mixed(),
}  # fmt: skip


class Mixed(Recording):
    """Returns NaN for the first text of a call, and zeros for the others."""

    def embed(self, texts: Sequence[str], /) -> np.ndarray[Any, Any]:
        vectors = np.zeros((len(texts), 16), np.float32)
        vectors[0] = np.nan
        return vectors


class Shapeless(Recording):
    def embed(self, texts: Sequence[str], /) -> Any:
        return np.ones((len(texts) + 1, 16))


@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("kind", BROKEN)
def test_every_text_fails(store: ef.EntityStore, kind: str, count: int) -> None:
    """The embedder is the cause: nothing is recorded as failed, no space is left, a working one embeds all."""
    store.upsert(notes(count), batch_size=15, progress=False)
    with pytest.raises(ef.EmbedderError):
        embed(store, BROKEN[kind]())
    assert store.spaces().is_empty()
    assert set(store.jobs()["state"].cast(pl.String)) == {"pending"}
    assert store.stats().select("embedded", "due", "failed").row(0) == (0, count, 0)
    assert not store.last_result.counts["failed"]
    # The same if the space already exists.
    assert embed(store).counts["embedded"] == count
    store.upsert(notes(count, "later"), progress=False)
    with pytest.raises(ef.EmbedderError):
        embed(store, BROKEN[kind]())
    assert store.spaces().select("embedded", "due", "failed").row(0) == (0, count, 0)
    assert embed(store).counts["embedded"] == count


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_bad_text_fails_alone(store: ef.EntityStore, value: float) -> None:
    """Among good texts, and also if it is the only one that is due."""
    store.upsert(notes(30), progress=False)
    store.upsert_entity("note", "bad", "a poisoned well")
    result = embed(store, Giving(value, "poisoned"))
    assert result.failed["id"].to_list() == ["bad"]
    assert (result.counts["embedded"], result.ok) == (30, False)
    store.upsert_entity("note", "worse", "as poisoned as the other")
    result = embed(store, Giving(value, "poisoned"))
    assert result.failed["id"].to_list() == ["worse"]
    assert store.stats()["failed"].to_list() == [2]


def busy(texts: Sequence[str]) -> None:
    raise ef.EmbedderBusyError("too many requests", 0.01)


def test_a_run_that_a_rate_limit_ended_is_not_ok(store: ef.EntityStore) -> None:
    """Neither the run that hit the limit nor a later one that finds its jobs failed; both explain how to continue."""
    store.upsert(notes(25), batch_size=10, progress=False)
    first = embed(store, Recording(before=busy), max_attempts=1)
    assert (first.ok, first.counts["failed"], first.waiting) == (False, 25, 25)
    assert first.failed["error"].str.contains("too many requests").fill_null(False).all()
    again = embed(store)
    assert (again.ok, again.rows, again.waiting) == (False, 0, 25)
    assert "25 stay due in jobs that failed" in repr(again)
    assert "store.retry_failed()" in again._repr_html_()
    with pytest.raises(ef.EntityFramesError, match="25 stay due"):
        again.raise_for_failures()
    assert store.retry_failed() == 25
    done = embed(store)
    assert (done.ok, done.counts["embedded"], done.waiting) == (True, 25, 0)
    # A failed job does not matter if its entities were embedded through another job.
    store.upsert(notes(5, "new"), progress=False)
    assert not embed(store, Recording(before=busy), max_attempts=1).ok
    assert store.enqueue() == 5
    assert embed(store).ok


def test_a_run_that_was_stopped_is_not_ok(store: ef.EntityStore) -> None:
    """Even if it was stopped before it had claimed a job."""
    store.upsert(notes(25), batch_size=10, progress=False)
    stop = threading.Event()
    stop.set()
    result = embed(store, cancel=stop)
    assert (result.ok, result.counts["embedded"]) == (False, 0)
    assert embed(store).ok


def test_unqueued_entities_are_reported(store: ef.EntityStore) -> None:
    """After embed=False there is nothing to do and no progress bar; the result has the number due and advice."""
    store.upsert(notes(12), embed=False, progress=False)
    calls: list[Any] = []
    result = store.embed(Recording(), progress=lambda done, total: calls.append((done, total)))
    assert (result.ok, result.rows, result.unqueued, calls) == (True, 0, 12, [])
    for shown in (repr(result), result._repr_html_()):
        assert "12 are due but not in any job: call store.enqueue()" in shown
    assert store.enqueue() == 12
    result = store.embed(Recording(), progress=lambda done, total: calls.append((done, total)))
    assert (result.unqueued, calls[-1]) == (0, (12, 12))
    assert "due" not in repr(result)
    store.close()
    assert "12 embedded" in repr(result)


def test_unqueued_entities_are_reported_before_a_first_search(store: ef.EntityStore) -> None:
    store.upsert(notes(3), embed=False, progress=False)
    with pytest.raises(ef.SpaceError, match=r"call store.enqueue\(\), since nothing is queued, and then store.embed"):
        store.search("text")
    store.enqueue()
    with pytest.raises(ef.SpaceError, match=r"call store.embed\(embedder\) first"):
        store.search("text")


@pytest.mark.parametrize("query", ["", " ", "\n\t  \u00a0"])
@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
def test_an_empty_query_finds_nothing(store: ef.EntityStore, query: str, mode: Any) -> None:
    """With the columns of every result, before and after anything is embedded; the embedder is not called."""
    store.upsert(notes(5), progress=False)
    assert store.search(query, mode=mode).is_empty()
    embed(store)
    found = store.search(query, mode=mode)
    assert (found.height, found.schema) == (0, store.search("text 1", mode=mode).schema)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), None])
def test_a_query_that_is_not_a_vector(store: ef.EntityStore, value: Any) -> None:
    store.upsert(notes(5), progress=False)
    embed(store)
    with pytest.raises(ValueError, match="NaN or infinity"):
        store.search([value, *[1.0] * 15])
    for query in (["a"] * 16, [[1.0], [2.0, 3.0]], {"a": 1.0}):
        with pytest.raises(ValueError, match="neither a string nor a vector of numbers"):
            store.search(query)
    # Numbers whose squares are out of range still have a direction.
    plain = store.search([1.0] * 16)["id"].to_list()
    assert store.search([1e300] * 16)["id"].to_list() == store.search([1e-300] * 16)["id"].to_list() == plain
    one = store.search([1.0] + [0.0] * 15)["id"].to_list()
    assert store.search([1e300] + [1e-300] * 15)["id"].to_list() == one


@pytest.mark.parametrize("queued", [True, False])
def test_an_embedder_that_is_not_installed(
    store: ef.EntityStore, monkeypatch: pytest.MonkeyPatch, queued: bool
) -> None:
    """No space is created for it, and the advice names an existing package."""
    store.upsert(notes(5), embed=queued, progress=False)
    for package in ("wordllama", "httpx", "sentence_transformers"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ef.EmbedderError, match="pip install wordllama$"):
        store.embed(ef.WordLlamaEmbedder(), progress=False)
    assert store.spaces().is_empty()
    with pytest.raises(ef.EmbedderError, match="pip install httpx$"):
        ef.OpenAIEmbedder()
    # With a space that is in use, everything would be queued for it separately.
    embed(store)
    with pytest.raises(ef.EmbedderError):
        store.embed(ef.WordLlamaEmbedder(), space="second", progress=False)
    assert store.spaces()["space"].to_list() == ["hashing-16"]


@pytest.mark.parametrize("queued", [True, False])
def test_a_first_call_that_fails_leaves_no_space(store: ef.EntityStore, queued: bool) -> None:
    """Whatever the error, and whether or not there is anything to embed; jobs wait for the next run."""
    store.upsert(notes(5), embed=queued, progress=False)

    def refuse(texts: Sequence[str]) -> None:
        raise ef.EmbedderError("no such model")

    for embedder, message in (
        (Recording(before=refuse), "no such model"), (Raising(), "CUDA error: out of memory"),
        (Shapeless(), "returned an array of shape"), (Giving(np.nan), "NaN or infinity"),
    ):  # fmt: skip
        with pytest.raises(ef.EmbedderError, match=message):
            embed(store, embedder)
        assert store.spaces().is_empty()
    assert embed(store).counts["embedded"] == 5 * queued
    with pytest.raises(ef.EmbedderError):
        embed(store, Recording(32, before=refuse), space="second")
    assert store.spaces()["space"].to_list() == ["hashing-16"]


def test_a_new_space_that_another_writer_has_begun_to_fill_is_kept(connect: Any) -> None:
    """Though its first embedder turns out not to work."""
    store, other, cancel = connect(), connect(), threading.Event()
    store.upsert(notes(2), batch_size=1, progress=False)

    def refuse(texts: Sequence[str]) -> None:
        # The other one works off the second job, and does not wait for the first.
        assert embed(other, Recording(before=lambda texts: cancel.set()), cancel=cancel).counts["embedded"] == 1
        raise ef.EmbedderError("no such model")

    with pytest.raises(ef.EmbedderError, match="no such model"):
        embed(store, Recording(before=refuse))
    assert store.spaces().select("space", "embedded").rows() == [("hashing-16", 1)]
    assert embed(store).counts["embedded"] == 1


def test_a_query_whose_embedder_is_not_there(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names what is missing: the embedder, or the package of a known embedder."""
    store, other = connect(), connect()
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    store.upsert(notes(2), progress=False)
    for space, message in (
        ("mine", r"embedded with mine: pass embedder="),
        ("sentence-transformers:mini", "pip install sentence-transformers$"),
    ):
        embedder = Recording()
        embedder.name = space
        store.enqueue()
        embed(store, embedder, space=space)
        store.activate(space)
        assert store.search("text").height == 2
        with pytest.raises(ef.EmbedderError, match=message):
            other.search("text")
        assert other.search("text", embedder=embedder).height == 2


def test_an_unknown_type_is_a_warning(store: ef.EntityStore) -> None:
    """The result is empty, and the warning lists the existing types; a type that once had entities is known."""
    store.upsert(notes(5), progress=False)
    embed(store)
    message = "no entities of type 'nota': the store has note"
    for mode in ("vector", "text", "hybrid"):
        with pytest.warns(UserWarning, match=message):
            assert store.search("text", entity_type="nota", mode=mode).is_empty()
    with pytest.warns(UserWarning, match=message):
        assert store.enqueue("nota") == 0
    assert store.search("text", entity_type="note").height == 5
    store.upsert(notes(1).with_columns(entity_type=pl.lit("gone"), metadata=pl.struct(n=1)), progress=False)
    store.delete_entity("gone", "n00000")
    assert store.search("text", entity_type="gone").is_empty()


def test_advice_names_existing_packages() -> None:
    """This package is on no index, so no message advises to install one of its extras."""
    from pathlib import Path

    package = Path(ef.__file__).parent
    assert [path.name for path in package.rglob("*.py") if "entityframes[" in path.read_text("utf-8")] == []


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["duckdb"], indirect=True)
def test_names_of_files_that_are_not_utf8(url: str, tmp_path: Any) -> None:
    """Every command with a path rejects it in two lines, or works with it; and its output does not fail."""
    name = b"caf\xe9"
    folder = str(tmp_path).encode() + b"/"
    (tmp_path / "good.csv").write_text("id,n\na,1\n,2\n")
    with open(folder + name + b".csv", "w") as file:
        file.write("id,n\na,1\n")
    os.mkdir(folder + name)
    with open(folder + name + b"/note.md", "w") as file:
        file.write("text\n")

    def run(*words: bytes | str) -> tuple[int, str, str]:
        return run_command(*map(os.fsdecode, words), cwd=tmp_path)

    to = ("--store", url)
    csv = name + b".csv"
    command = [sys.executable, "-m", "entityframes", "sync", name + b".none", *to]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr.decode().count("\n"), b"caf" in done.stderr) == (2, 2, True), done
    for words in (
        ("import", csv, "--type", "t", "--id", "id", *to), ("import", "caf*.csv", "--type", "t", "--id", "id", *to),
        ("import", "good.csv", "--type", "t", "--id", "id", "--failed", csv, *to),
        ("import", name + b".parquet", "--type", "t", "--id", "id", *to),
        ("get", "--type", "t", "--ids", csv, *to), ("exists", "--type", "t", "--ids", csv, *to),
        ("delete", "--type", "t", "--ids", csv, *to), ("stats", "--store", name + b".duckdb"),
        ("sync", name + b".none", *to),
    ):  # fmt: skip
        code, _, errors = run(*words)
        assert (code, errors.count("\n"), "caf" in errors) == (2, 2, True), (words, errors)
    assert not (tmp_path / "store.duckdb").exists() or run("exists", "--type", "t", "a", *to)[0] == 1
    assert run("import", "good.csv", "--type", "t", "--id", "id", *to)[0] == 1
    code, _, errors = run("export", "t", "--out", csv, *to)
    assert (code, "not UTF-8" in errors) == (2, True)
    for words in (("sync", name, *to), ("sync", name, "--json", *to), ("sync", name, "--dry-run", *to)):
        code, _, errors = run(*words)
        assert code == 0, errors
    assert run("get", "--type", "note", "note", *to)[0] == 0
