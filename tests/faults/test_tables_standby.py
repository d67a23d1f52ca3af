"""Tables whose server is replaced by a standby: there is no ledger, so that nothing older than the change is certain."""

from __future__ import annotations

import polars as pl
import pytest

import entityframes as ef
from entityframes import retry
from tests.faults.servers import COMMIT, Background, wait_until
from tests.faults.test_standby import (  # noqa: F401
    Pair,
    back_when_queried,
    behind,
    lasting,
    pair,
    primaries,
)
from tests.faults.test_tables import Model, rows

pytestmark = pytest.mark.slow

DDL = "CREATE TABLE IF NOT EXISTS items (k integer PRIMARY KEY, v text)"


def opened(servers: Pair, url: str | None = None) -> ef.Table:
    servers.primary.sql(DDL, "TRUNCATE items", database=servers.database)
    table = ef.table(url or servers.primary.url(servers.database, port=servers.proxy.port), "items", workers=1)
    servers._stores.append(table)  # type: ignore[arg-type]
    return table


def test_a_standby_is_not_asked_what_was_committed(behind: Pair, back_when_queried) -> None:  # noqa: F811
    """The answer to COMMIT is lost and a lagging standby answers: the primary is waited for."""
    model, table = Model(), opened(behind, behind.both())
    met = back_when_queried(behind.proxy)
    frame = rows(3_000)
    behind.proxy.drop_answer_to, behind.proxy.away_after_drop = COMMIT, True
    result = table.upsert(frame)
    assert met
    assert result.counts["created"] == 3_000, result
    model.upserted(frame, result)
    met.clear()
    behind.proxy.drop_answer_to = COMMIT
    gone = table.delete(frame["k"][:20])
    assert met
    assert gone.counts["deleted"] == 20
    model.deleted(gone)
    model.check(table)


def test_only_a_standby_is_left(behind: Pair, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """The rows are unknown, and nothing else; likewise for deletions."""
    monkeypatch.setattr(retry, "LOOK_UP_SECONDS", 0.5)
    model, table = Model(), opened(behind, behind.both())
    frame = rows(50)
    behind.proxy.drop_answer_to, behind.proxy.away_after_drop = COMMIT, True
    result = table.upsert(frame)
    assert result.counts["unknown"] == 50, result
    model.upserted(frame, result)
    behind.proxy.back()
    model.check(table)
    assert table.upsert(frame).counts["unchanged"] == 50


@pytest.mark.parametrize("lost", [False, True])
def test_a_standby_takes_over(pair: Pair, lost: bool) -> None:  # noqa: F811
    """In a run of ten batches: what was written before is unknown, not wrong, and a second run completes it."""
    model, table = Model(), opened(pair)
    frame = rows(1_000)

    def steps():
        for number, piece in enumerate(frame.iter_slices(100)):
            if number == 5:
                wait_until(
                    lambda: pair.primary.sql("SELECT count(*) FROM items", database=pair.database)[0][0] >= 300,
                    "batches",
                )
                if lost:
                    pair.standby.receive_nothing()
                else:
                    pair.standby.catch_up()
                pair.fail_over()
            yield piece

    result = table.upsert(steps(), batch_size=100)
    assert result.counts["unknown"] > 0, result
    # The rest of a stream is not read if no server answers for long, as on a busy machine.
    read = result.rows
    assert read >= 500
    assert result.outcomes["row"].to_list() == list(range(read))
    certain = dict(result.outcomes.select("k", pl.col("status").cast(pl.String)).iter_rows())
    stored = dict(table.read().iter_rows())
    for key, status in certain.items():
        assert status != "created" or key in stored
        assert status not in ("failed", "cancelled") or key not in stored
    model.upserted(frame[:read], result)
    model.check(table)
    again = table.upsert(frame)
    assert again.ok
    model.upserted(frame, again)
    model.check(table)
    assert len(model.rows) == 1_000


def test_a_standby_takes_over_at_a_commit(pair: Pair) -> None:  # noqa: F811
    """Whether it was replicated cannot be known: the rows are unknown, and the table has all of them or none."""
    table = opened(pair)
    table.upsert(rows(20))
    pair.standby.catch_up()
    frame = rows(500, "changed")
    pair.proxy.hold_before = COMMIT
    run = Background(lambda: table.upsert(frame))
    assert pair.proxy.held.wait(60)
    pair.fail_over()
    pair.proxy.go.set()
    result = run.outcome()
    assert result.counts["unknown"] == 500, result
    stored = dict(table.read().iter_rows())
    assert set(stored.values()) in (
        {value for _, value in rows(20).iter_rows()},
        {value for _, value in frame.iter_rows()},
    )
    assert table.upsert(frame).ok
