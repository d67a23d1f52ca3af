"""Embedding with actors of Ray, on a real cluster of one machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import entityframes as ef
from tests.databases import execute
from tests.distributed.test_partition import notes

pytestmark = pytest.mark.slow


class Deadly(ef.HashingEmbedder):
    """An embedder that kills its process at some call, unless a file says that it has done so."""

    def __init__(self, marker: str, call: int) -> None:
        super().__init__(64)
        self._marker, self._left = marker, call

    def embed(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        self._left -= 1
        if self._left == 0 and not os.path.exists(self._marker):
            open(self._marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().embed(texts)


@pytest.fixture
def embed(cluster: Any) -> Any:
    """`entityframes.ray.embed`."""
    from entityframes import ray as ours

    return ours.embed


def counted(result: Any) -> dict[str, int]:
    return {status: count for status, count in result.counts.items() if count}


def test_actors_share_the_work(embed: Any, store_url: str) -> None:
    """All that is due is embedded once, in pieces that several actors take."""
    with ef.connect(store_url) as store:
        store.upsert(notes(range(3_000)))
        assert store.jobs("pending")["entities"].to_list() == [3_000]
    result = embed(store_url, lambda: ef.HashingEmbedder(64), num_workers=2, batch_size=100)
    assert counted(result) == {"embedded": 3_000}
    assert result.ok
    assert result.outcomes["row"].to_list() == list(range(3_000))
    assert result.outcomes["id"].n_unique() == 3_000
    with ef.connect(store_url) as store:
        jobs = store.jobs("done")
        assert jobs["entities"].to_list() == [1_000] * 3
        assert store.stats()["due"].sum() == 0
        assert store.verify().is_empty()
    assert embed(store_url, lambda: ef.HashingEmbedder(64), num_workers=1).rows == 0
    with pytest.raises(ef.SpaceError, match="32 dimensions|64 dimensions"):
        embed(store_url, lambda: ef.HashingEmbedder(32), num_workers=1)


@pytest.mark.parametrize("call", [2, 13])
def test_a_dead_actor(embed: Any, store_url: str, tmp_path: Path, call: int) -> None:
    """Its jobs are taken over at once, what it had written is counted, and another actor takes its place."""
    with ef.connect(store_url) as store:
        store.upsert(notes(range(2_500)))
    marker = str(tmp_path / "killed")
    result = embed(store_url, lambda: Deadly(marker, call), num_workers=1, batch_size=100)
    assert os.path.exists(marker)
    assert counted(result) == {"embedded": 2_500}
    assert result.outcomes["id"].n_unique() == 2_500
    assert any("died and was replaced" in note for note in result.notes)
    with ef.connect(store_url) as store:
        assert store.stats().select("embedded", "due").row(0) == (2_500, 0)
        assert store.verify().is_empty()
    assert execute(store_url, "SELECT max(rescues) FROM entityframes.embedding_jobs") == [(1,)]


def test_an_embedder_that_cannot_work(embed: Any, store_url: str) -> None:
    """Its error is raised, and no space is left."""

    def factory() -> Any:
        raise ef.EmbedderError("no such model")

    with ef.connect(store_url) as store:
        store.upsert(notes(range(3)))
    with pytest.raises(ef.EmbedderError, match="no such model"):
        embed(store_url, factory, num_workers=2)
    with pytest.raises(ef.EmbedderError, match="again and again"):
        embed(store_url, lambda: os.kill(os.getpid(), signal.SIGKILL), num_workers=1, retries=1)
    with pytest.raises(ValueError, match="num_workers"):
        embed(store_url, factory, num_workers=0)
    with ef.connect(store_url) as store:
        assert store.spaces().is_empty()
        assert store.jobs("pending").height == 1


def test_jobs_are_split_and_given_back(store_url: str) -> None:
    """Split jobs list each key once; the lease of a dead process ends at once, and of another it does not."""
    from entityframes.engines.embedding import Worker

    with ef.connect(store_url) as store:
        result = store.upsert(notes(range(25)))
        embedding = store._engine.embedding
        embedding.add_space("small", "model", 3)
        assert embedding.split_jobs("small", 10) == 1
        assert embedding.split_jobs("small", 10) == 0
        jobs = store.jobs()
        assert sorted(jobs["entities"]) == [5, 10, 10]
        assert result.outcomes["job_id"][0] in jobs["job_id"].to_list()
        assert jobs["batch_id"].n_unique() == 1
        ids = [id for (ids,) in execute(store_url, "SELECT ids FROM entityframes.embedding_jobs") for id in ids]
        assert sorted(ids) == sorted(notes(range(25))["id"])
        assert store.verify().is_empty()
        held = embedding.claim("small", Worker("machine/1/a/0", "machine/1/a/", 60.0))
        others = [embedding.claim("small", Worker("machine/1/b/0", "machine/1/b/", 60.0)) for _ in range(2)]
        assert held is not None
        assert None not in others
        assert embedding.give_back("machine/1/a/") == 1
        again = embedding.claim("small", Worker("machine/1/c/0", "machine/1/c/", 60.0))
        assert (again.job_id, again.taken_over) == (held.job_id, True)
        assert embedding.claim("small", Worker("machine/1/c/1", "machine/1/c/", 60.0)) is None
