"""How other tools write a frame into PostgreSQL: as their documentation recommends, into a table with the same key."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from contextlib import closing
from importlib import import_module
from typing import Any, Protocol
from unittest import mock

import polars as pl

import entityframes as ef
from entityframes.writing.outcomes import Outcomes

COLUMNS = ("entity_type", "id", "content", "metadata")
KEY = ["entity_type", "id"]

_CREATE = """CREATE TABLE peer.entities (
    entity_type text NOT NULL, id text NOT NULL, content text NOT NULL, metadata jsonb NOT NULL,
    PRIMARY KEY (entity_type, id))"""
_SET = "DO UPDATE SET content = EXCLUDED.content, metadata = EXCLUDED.metadata"


class Contestant(Protocol):
    """An implementation of upsert."""

    name: str
    #: Above `max_rows` rows it would take too long and is not run; from `once_from` rows on it is run only once.
    max_rows: int
    once_from: int

    def prepare(self) -> None:
        """Create an empty table."""

    def upsert(self, frame: pl.DataFrame) -> None:
        """Insert or update all rows of an entity frame."""

    def stored(self) -> tuple[int, int]:
        """The number of rows, and the total bytes of their contents."""

    def close(self) -> None:
        """Disconnect from the database."""


def as_json(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with metadata as JSON text, as databases expect it."""
    return frame.with_columns(pl.col("metadata").struct.json_encode())


class EntityFrames:
    """This package."""

    max_rows = once_from = 10**9

    def __init__(self, url: str, workers: int | None = None) -> None:
        self.name = "entityframes" + (f", {workers} connections" if workers else "")
        self._url = url
        self._workers = workers
        self._store: ef.EntityStore | None = None

    def prepare(self) -> None:
        self.close()
        _execute(self._url, "DROP SCHEMA IF EXISTS peer CASCADE")
        self._store = ef.connect(self._url, namespace="peer", workers=self._workers)

    def upsert(self, frame: pl.DataFrame) -> None:
        assert self._store is not None
        self._store.upsert(frame, progress=False).raise_for_failures()

    def stored(self) -> tuple[int, int]:
        return _stored(self._url)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None


class WithoutOutcomes(EntityFrames):
    """This package without outcomes, ledger and embedding jobs: the difference to the full package is their cost."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.name = "limit: no outcomes, ledger and jobs"

    def prepare(self) -> None:
        super().prepare()
        assert self._store is not None
        statements: Any = self._store._engine.database.statements  # type: ignore[attr-defined]
        statements.replace(
            "record", statements["record"], "SELECT 1 WHERE " + " AND ".join(f"${n} IS NULL" for n in range(1, 8))
        )

    def upsert(self, frame: pl.DataFrame) -> None:
        with mock.patch.object(Outcomes, "committed", lambda outcomes, rows, written, batch: outcomes.none):
            super().upsert(frame)


class _Peer:
    #: Modules that are imported before the clock starts.
    modules: tuple[str, ...] = ("psycopg",)
    max_rows = once_from = 10**9
    #: Opened by `prepare` if the library accepts an open connection, so that connecting is not timed.
    _connection: Any = None

    def __init__(self, url: str) -> None:
        self._url = url

    def prepare(self) -> None:
        for name in self.modules:
            import_module(name)
        _execute(self._url, "DROP SCHEMA IF EXISTS peer CASCADE", "CREATE SCHEMA peer", _CREATE)

    def stored(self) -> tuple[int, int]:
        return _stored(self._url)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class ByHand(_Peer):
    """psycopg: COPY into a temporary table, then INSERT ... ON CONFLICT, in one transaction."""

    def __init__(self, url: str, *, guarded: bool = False) -> None:
        super().__init__(url)
        self.name = "by hand (COPY, ON CONFLICT" + (", WHERE differs)" if guarded else ")")
        self._where = " WHERE (e.content, e.metadata) IS DISTINCT FROM (EXCLUDED.content, EXCLUDED.metadata)"
        self._where = self._where if guarded else ""

    def prepare(self) -> None:
        import psycopg

        super().prepare()
        self._connection = psycopg.connect(self._url)

    def upsert(self, frame: pl.DataFrame) -> None:
        columns = ", ".join(COLUMNS)
        with self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.execute("CREATE TEMP TABLE staging (LIKE peer.entities) ON COMMIT DROP")
            with cursor.copy(f"COPY staging ({columns}) FROM STDIN") as copy:
                for row in as_json(frame).select(COLUMNS).iter_rows():
                    copy.write_row(row)
            cursor.execute(
                f"INSERT INTO peer.entities AS e ({columns}) SELECT {columns} FROM staging "
                f"ON CONFLICT (entity_type, id) {_SET}{self._where}"
            )


class PolarsMerge(_Peer):
    """Polars write_database (ADBC) into a staging table, then INSERT ... ON CONFLICT by hand."""

    name = "Polars write_database + merge"

    def prepare(self) -> None:
        import adbc_driver_postgresql.dbapi as adbc

        super().prepare()
        self._connection = adbc.connect(self._url)

    def upsert(self, frame: pl.DataFrame) -> None:
        as_json(frame).select(COLUMNS).write_database(
            "peer.staging", self._connection, engine="adbc", if_table_exists="replace"
        )
        with self._connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO peer.entities AS e SELECT entity_type, id, content, metadata::jsonb FROM peer.staging "
                f"ON CONFLICT (entity_type, id) {_SET}"
            )
        self._connection.commit()


class SQLAlchemyCore(_Peer):
    """SQLAlchemy Core: insert().on_conflict_do_update(), 1,000 rows a statement."""

    name = "SQLAlchemy Core"
    modules = ("psycopg", "sqlalchemy.dialects.postgresql")
    max_rows = once_from = 100_000

    def upsert(self, frame: pl.DataFrame) -> None:
        import sqlalchemy as sa
        from sqlalchemy.dialects.postgresql import JSONB, insert

        engine = sa.create_engine(_driver_url(self._url))
        text = [sa.Column(name, sa.Text, primary_key=name in KEY) for name in COLUMNS[:3]]
        table = sa.Table("entities", sa.MetaData(), *text, sa.Column("metadata", JSONB), schema="peer")
        rows = frame.to_dicts()
        with engine.begin() as connection:
            for start in range(0, len(rows), 1_000):
                statement = insert(table).values(rows[start : start + 1_000])
                new = {name: statement.excluded[name] for name in ("content", "metadata")}
                connection.execute(statement.on_conflict_do_update(index_elements=KEY, set_=new))
        engine.dispose()


class Pangres(_Peer):
    """pangres: upsert of a pandas frame whose index is the key."""

    name = "pangres"
    modules = ("psycopg", "pangres", "sqlalchemy.dialects.postgresql")
    max_rows = once_from = 100_000

    def upsert(self, frame: pl.DataFrame) -> None:
        import pangres
        import sqlalchemy as sa
        from sqlalchemy.dialects.postgresql import JSONB

        engine = sa.create_engine(_driver_url(self._url))
        pandas = frame.to_pandas().set_index(KEY)
        pandas["metadata"] = [_plain(value) for value in frame["metadata"].to_list()]
        pangres.upsert(
            con=engine, df=pandas, table_name="entities", schema="peer", if_row_exists="update",
            create_table=False, dtype={"metadata": JSONB}, chunksize=1_000,
        )  # fmt: skip
        engine.dispose()


class DbMerge(_Peer):
    """dbmerge: COPY into a staging table, then one UPDATE of rows that differ and one INSERT of those that are new."""

    name = "dbmerge"
    modules = ("psycopg", "dbmerge", "sqlalchemy.dialects.postgresql")

    def upsert(self, frame: pl.DataFrame) -> None:
        import sqlalchemy as sa
        from dbmerge import dbmerge

        engine = sa.create_engine(_driver_url(self._url))
        rows = as_json(frame).select(COLUMNS)
        target = {"engine": engine, "table_name": "entities", "schema": "peer", "key": KEY}
        with contextlib.redirect_stdout(io.StringIO()), dbmerge(data=rows, **target) as merge:
            merge.exec()
        engine.dispose()


class Dlt(_Peer):
    """dlt: an Arrow table merged with the upsert strategy; dlt creates its own tables.

    Args:
        url: the address of the database.
        skip: whether rows that equal the stored ones are not updated, for which dlt compares all columns.
    """

    modules = ("dlt", "dlt.destinations.impl.postgres.postgres")

    def __init__(self, url: str, *, skip: bool = False) -> None:
        super().__init__(url)
        self.name = "dlt, skip_unchanged_rows" if skip else "dlt"
        self._skip = {"skip_unchanged_rows": True} if skip else {}

    def prepare(self) -> None:
        super().prepare()
        _execute(self._url, "DROP SCHEMA IF EXISTS peer CASCADE", "DROP SCHEMA IF EXISTS peer_staging CASCADE")
        self._folder = tempfile.TemporaryDirectory()
        # It warns that the hint for metadata differs from Arrow's dtype, which is intended.
        os.environ.setdefault("RUNTIME__LOG_LEVEL", "ERROR")

    def upsert(self, frame: pl.DataFrame) -> None:
        import dlt

        resource = dlt.resource(
            as_json(frame).to_arrow(), name="entities", primary_key=KEY, columns={"metadata": {"data_type": "json"}},
            write_disposition={"disposition": "merge", "strategy": "upsert", **self._skip},
        )  # fmt: skip
        destination = dlt.destinations.postgres(self._url)
        pipeline = dlt.pipeline("bench", dataset_name="peer", pipelines_dir=self._folder.name, destination=destination)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipeline.run(resource)


class RawIngest(_Peer):
    """The limit: ADBC copies the frame straight into the keyed table; this can only insert."""

    name = "limit: ADBC ingest, insert only"

    def prepare(self) -> None:
        import adbc_driver_postgresql.dbapi as adbc

        create = _CREATE.replace("jsonb", "json")
        _execute(self._url, "DROP SCHEMA IF EXISTS peer CASCADE", "CREATE SCHEMA peer", create)
        self._connection = adbc.connect(self._url)

    def upsert(self, frame: pl.DataFrame) -> None:
        table = as_json(frame).select(COLUMNS).to_arrow()
        with self._connection.cursor() as cursor:
            cursor.adbc_ingest("entities", table, mode="append", db_schema_name="peer")
        self._connection.commit()


def contestants(url: str) -> list[Callable[[], Contestant]]:
    """All contestants, ours first."""
    return [
        lambda: EntityFrames(url),
        lambda: WithoutOutcomes(url),
        lambda: ByHand(url),
        lambda: ByHand(url, guarded=True),
        lambda: PolarsMerge(url),
        lambda: DbMerge(url),
        lambda: Dlt(url),
        lambda: Dlt(url, skip=True),
        lambda: SQLAlchemyCore(url),
        lambda: Pangres(url),
        lambda: RawIngest(url),
    ]


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(value, default=list)))


def _driver_url(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


def _execute(url: str, *statements: str) -> list[Any]:
    import psycopg

    with closing(psycopg.connect(url, autocommit=True)) as connection:
        cursor = connection.cursor()
        for statement in statements:
            cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def _stored(url: str) -> tuple[int, int]:
    rows, size = _execute(url, "SELECT count(*), coalesce(sum(octet_length(content)), 0) FROM peer.entities")[0]
    return int(rows), int(size)
