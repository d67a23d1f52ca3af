"""Partitions of a run whose server goes away."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import polars as pl
import pytest

import entityframes as ef
from entityframes import distributed
from entityframes.distributed import Entities, Rows, upsert_partition
from tests.distributed.test_partition import RUN, counts, facts, notes
from tests.faults.servers import Server


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """No connection of a test stays open."""
    yield
    distributed.close()


@pytest.mark.slow
@pytest.mark.parametrize("back", [True, False], ids=["at once", "for the next attempt"])
def test_the_server_is_killed(own_server: Server, database: str, back: bool) -> None:
    """The call waits for a server that comes back; if it stays away it raises, and another attempt completes it."""
    url = own_server.url(database)
    with ef.connect(url) as store:
        store.upsert(notes(range(400)))
    frame = pl.concat([notes(range(150)), notes(range(150, 900), "new")])
    kills = iter([1])

    def source() -> Iterator[pl.DataFrame]:
        for number, piece in enumerate(frame.iter_slices(100)):
            if number == 6 and next(kills, None):
                own_server.kill()
                if back:
                    own_server.start()
            yield piece

    def attempt() -> dict[str, int]:
        table = upsert_partition(source, url, run_id=RUN, partition="p", target=Entities(batch_size=100))
        assert back or facts(table)["resumed"] >= 1
        return counts(table)

    if not back:
        with pytest.raises(ef.ConnectionLostError, match="rows were not written"):
            attempt()
        own_server.start()
    assert attempt() == {"created": 500, "unchanged": 150, "updated": 250}
    distributed.close()
    with ef.connect(url) as store:
        assert store.read("note").select("id", "content").sort("id").equals(frame.select("id", "content").sort("id"))
        assert store.verify().is_empty()


@pytest.mark.slow
def test_a_table_has_no_ledger(own_server: Server, database: str) -> None:
    """After another attempt the sum of the rows is right, and what the first attempt created is unchanged."""
    url = own_server.url(database)
    frame = pl.DataFrame({"id": range(900), "text": "text"})
    ef.create_table(url, "public.things", frame, key="id").close()
    kills = iter([1])

    def source() -> Iterator[pl.DataFrame]:
        for number, piece in enumerate(frame.iter_slices(100)):
            if number == 3 and next(kills, None):
                own_server.kill()
            yield piece

    target = Rows(table="public.things", batch_size=100)
    run = {"target": target, "run_id": str(uuid.uuid4()), "partition": "p"}
    with pytest.raises(ef.ConnectionLostError):
        upsert_partition(source, url, **run)
    own_server.start()
    found = counts(upsert_partition(source, url, **run))
    assert set(found) == {"created", "unchanged"}
    assert sum(found.values()) == 900
    assert found["created"] < 900
    with ef.table(url, "public.things") as table:
        assert table.count() == 900


def test_a_server_that_is_not_there(own_server: Server, database: str) -> None:
    """Opening the database fails as a connection does, so that the engine tries again."""
    url = own_server.url(database, port=1)
    with pytest.raises(ef.ConnectError):
        upsert_partition(notes(range(1)), url, run_id=RUN, partition="p")
