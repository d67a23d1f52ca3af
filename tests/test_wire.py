"""Round trips, counted on the wire."""

from __future__ import annotations

import time
from collections.abc import Iterator

import polars as pl
import pytest

import entityframes as ef
from entityframes.bench.n_plus_one import sample
from entityframes.bench.wire import WireProxy
from entityframes.metadata import fields


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[WireProxy]:
    with WireProxy(postgres_url) as proxy:
        yield proxy


@pytest.fixture
def warm(proxy: WireProxy) -> Iterator[ef.EntityStore]:
    """A store with open connections."""
    with ef.connect(proxy.url) as store:
        store.upsert(sample(1_000, version=0), batch_size=100, progress=False)
        proxy.reset()
        yield store


def test_one_batch_of_a_thousand(warm: ef.EntityStore, proxy: WireProxy) -> None:
    """The default: one statement for the batch, one for the dtypes of the metadata."""
    result = warm.upsert(sample(1_000, version=1), progress=False)
    assert result.counts["updated"] == 1_000
    assert proxy.round_trips <= 4


def test_a_thousand_in_batches_of_a_hundred(
    warm: ef.EntityStore, proxy: WireProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two per batch, including the transaction; right after another call the dtypes are cached."""
    # However slow a busy machine is.
    monkeypatch.setattr(fields, "RECENT_S", 3_600.0)
    warm.upsert(sample(1, version=1), progress=False)
    proxy.reset()
    result = warm.upsert(sample(1_000, version=2), batch_size=100, progress=False)
    assert result.counts["updated"] == 1_000
    assert result.batches == 10
    assert proxy.round_trips == 20


def test_a_thousand_that_are_expected(warm: ef.EntityStore, proxy: WireProxy) -> None:
    """Compared and written in one statement."""
    frame = sample(1_000, version=1)
    seen = warm.get(frame).select("entity_type", "id", "content_hash")
    frame = frame.join(seen, on=["entity_type", "id"], maintain_order="left")
    proxy.reset()
    assert warm.upsert(frame, expected_hash="content_hash", progress=False).counts["updated"] == 1_000
    assert proxy.round_trips <= 4


@pytest.mark.parametrize("call", ["exists", "missing", "get"])
def test_looking_up_a_thousand(warm: ef.EntityStore, proxy: WireProxy, call: str) -> None:
    """One statement."""
    ids = sample(1_000, version=0).select("entity_type", "id")
    getattr(warm, call)(ids)
    assert proxy.round_trips == 2


def test_a_large_batch(warm: ef.EntityStore, proxy: WireProxy) -> None:
    """Far more rows than one statement allows, half new, half changed: the number does not grow with the rows."""
    counted = []
    for size in (3_000, 6_000):
        warm.delete(sample(size, version=0).select("entity_type", "id"))
        warm.upsert(sample(size // 2, version=size), progress=False)
        proxy.reset()
        frame = sample(size, version=size + 1).drop("metadata")
        result = warm.upsert(frame, absent="clear", progress=False)
        assert result.counts["created"] == result.counts["updated"] == size // 2
        assert result.batches == 1
        counted.append(proxy.round_trips)
    # One of them checks for triggers that may drop rows, which COPY would not report.
    assert counted == [18, 18]


def test_a_run_that_changes_nothing(warm: ef.EntityStore, proxy: WireProxy) -> None:
    """Keys and hashes are sent once, whatever the size of the batch, and whether or not a large one is new."""
    for size, trips in ((1_000, 2), (6_000, 2)):
        frame = sample(size, version=1).drop("metadata")
        warm.upsert(frame, absent="clear", progress=False)
        proxy.reset()
        assert warm.upsert(frame, absent="clear", progress=False).counts["unchanged"] == size
        assert proxy.round_trips == trips


def test_the_proxy_counts_what_a_loop_costs(warm: ef.EntityStore, proxy: WireProxy) -> None:
    """The calls for single entities need a round trip each; this proves that the counter works."""
    ids = [f"entity-{number}" for number in range(20)]
    for one in ids:
        assert warm.get_entity("bench", one) is not None
    assert proxy.round_trips == len(ids)


def test_latency_is_added(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """This number of milliseconds for each round trip, half of it in each direction."""
    slept: list[float] = []
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: (slept.append(seconds), sleep(0.0)))
    with WireProxy(postgres_url, latency_ms=50) as proxy, ef.connect(proxy.url) as store:
        ids = pl.DataFrame({"entity_type": ["t"], "id": ["x"]})
        proxy.reset()
        slept.clear()
        for _ in range(3):
            store.exists(ids)
        assert proxy.round_trips == 3
        assert slept == [0.025] * 6


def test_an_address_goes_before_a_name(proxy: WireProxy) -> None:
    """As for libpq, which resolves the name of a host only if its address is not given."""
    port = proxy.url.rpartition("@127.0.0.1:")[2].partition("/")[0]
    url = proxy.url.replace(f"@127.0.0.1:{port}", "@")
    url += f"{'&' if '?' in url else '?'}host=nowhere.invalid&hostaddr=127.0.0.1&port={port}"
    with WireProxy(url) as second, ef.connect(second.url) as store:
        assert store.stats().is_empty()


def test_a_filter_of_a_search_goes_to_the_database(warm: ef.EntityStore, proxy: WireProxy) -> None:
    """The nearest entity that passes it is found by one query, however many others are nearer."""
    warm.embed(ef.HashingEmbedder(32), progress=False)
    query = warm.read("bench").row(0, named=True)["content"]
    where = pl.col("id") == warm.search(query, k=1_000, entity_type="bench")["id"].to_list()[-1]
    costs = []
    for filtered in (where, pl.col("id").is_not_null()):
        proxy.reset()
        assert warm.search(query, k=1, entity_type="bench", where=filtered).height == 1
        costs.append(proxy.round_trips)
    assert costs[0] == costs[1]
