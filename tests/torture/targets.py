"""What the workers of a torture run write to: the entities of a store, or the rows of a table."""

from __future__ import annotations

import threading
from typing import Any, Protocol

import polars as pl

import entityframes as ef
from entityframes.tables import Table

#: The table of a run, on both engines.
CREATE_TABLE = "CREATE TABLE IF NOT EXISTS torture (id varchar PRIMARY KEY, content varchar NOT NULL)"


class Target(Protocol):
    """Keys with contents; each instance has its own `last_result`."""

    #: The engine that all targets of a process share.
    engine: Any

    @property
    def last_result(self) -> Any: ...
    def get(self, keys: list[str]) -> pl.DataFrame: ...
    def delete(self, keys: list[str]) -> ef.DeleteResult: ...
    def upsert(
        self, keys: list[str], call: str, batch_size: int | None, cancel: threading.Event
    ) -> ef.UpsertResult: ...
    def stored(self) -> dict[str, str]:
        """The content of each key."""

    def inconsistencies(self) -> pl.DataFrame: ...
    def another(self) -> Target:
        """The same with a `last_result` of its own."""

    def close(self) -> None: ...


class Entities:
    """The entities of a store."""

    def __init__(self, store: ef.EntityStore) -> None:
        self._store, self.engine = store, store._engine

    @property
    def last_result(self) -> Any:
        return self._store.last_result

    def get(self, keys: list[str]) -> pl.DataFrame:
        return self._store.get(ef.ids("t", keys))

    def delete(self, keys: list[str]) -> ef.DeleteResult:
        return self._store.delete(ef.ids("t", keys))

    def upsert(self, keys: list[str], call: str, batch_size: int | None, cancel: threading.Event) -> ef.UpsertResult:
        frame = ef.ids("t", keys).with_columns(content=pl.format("{} {}", pl.lit(call), "id"))
        return self._store.upsert(frame, batch_size=batch_size, progress=False, cancel=cancel)

    def stored(self) -> dict[str, str]:
        return dict(self._store.scan("t").select("id", "content").collect().iter_rows())

    def inconsistencies(self) -> pl.DataFrame:
        return self._store.verify()

    def another(self) -> Entities:
        return Entities(ef.EntityStore(self._store._engine))

    def close(self) -> None:
        self._store.close()


class Rows:
    """The rows of a table."""

    def __init__(self, table: Table) -> None:
        self._table, self.engine = table, table._engine

    @property
    def last_result(self) -> Any:
        return self._table.last_result

    def get(self, keys: list[str]) -> pl.DataFrame:
        return self._table.get(keys)

    def delete(self, keys: list[str]) -> ef.DeleteResult:
        return self._table.delete(keys)

    def upsert(self, keys: list[str], call: str, batch_size: int | None, cancel: threading.Event) -> ef.UpsertResult:
        frame = pl.DataFrame({"id": keys}).with_columns(content=pl.format("{} {}", pl.lit(call), "id"))
        return self._table.upsert(frame, batch_size=batch_size, progress=False, cancel=cancel)

    def stored(self) -> dict[str, str]:
        return dict(self._table.read(["id", "content"]).iter_rows())

    def inconsistencies(self) -> pl.DataFrame:
        return pl.DataFrame()

    def another(self) -> Rows:
        return Rows(Table(self._table._engine, "torture"))

    def close(self) -> None:
        self._table.close()


def open_target(url: str, name: str, **options: Any) -> Target:
    """The entities or the rows at an address.

    Raises:
        ConnectError: as `connect` and `table`.
    """
    return Rows(ef.table(url, "torture", **options)) if name == "tables" else Entities(ef.connect(url, **options))
