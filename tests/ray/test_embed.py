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
