"""Narrow frames (case 56) when the connection is lost: absent columns are not changed, whatever the server answered."""

from __future__ import annotations

import polars as pl
import pytest

from tests.faults.invariants import check_jobs, rows
from tests.faults.servers import COMMIT, Proxy, Server


@pytest.mark.slow
@pytest.mark.parametrize("count", [60, 3_000])
def test_the_answer_to_a_commit_of_narrow_rows_is_lost(
    own_server: Server, database: str, own_store, proxy: Proxy, count: int
) -> None:
    """Cases 22 and 56: the ledger shows what was merged and written; it is written once, and nothing is cleared."""
    store = own_store(port=proxy.port, workers=1)
    wide = rows(count).with_columns(metadata=pl.lit('{"n":1,"text":"stays"}'))
    store.upsert(wide[: count - 5])
    own_server.sql("TRUNCATE entityframes.embedding_jobs", database=database)
    narrow = wide.select("entity_type", "id", metadata=pl.lit('{"n":2}'))
    proxy.drop_answer_to = COMMIT if count > 2_000 else b"updated AS"
    result = store.upsert(narrow)
    assert proxy.dropped.is_set()
    assert (result.counts["updated"], result.counts["created"]) == (count - 5, 5), result
    ledger = own_server.sql("SELECT created, updated FROM entityframes.batches ORDER BY written_at", database=database)
    assert ledger[1:] == [(5, count - 5)]
    check_jobs(
        result.outcomes, own_server.sql("SELECT job_id::text, ids FROM entityframes.embedding_jobs", database=database)
    )
    stored = store.get(wide)
    old = pl.int_range(count) < count - 5
    assert stored.select(
        (pl.col("content") == pl.when(old).then(wide["content"]).otherwise(pl.lit(""))).all(),
        (pl.col("metadata") == pl.when(old).then(pl.lit('{"n":2,"text":"stays"}')).otherwise(pl.lit('{"n":2}'))).all(),
    ).row(0) == (True, True)
    assert store.upsert(narrow).counts["unchanged"] == count
    assert store.verify().is_empty()
