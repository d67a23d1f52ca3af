"""One partition of a run: what a task of Ray, Dask, Spark or any other engine writes, in a process of its own.

All tasks of a run share a run id. An engine that loses a process runs the task again, and much of its partition is then
stored already. The ids of the batches of a partition have a common beginning, by which the ledger of a store tells what
earlier attempts have written: those rows are counted as written, so that the counts are those of a run without faults.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl
import pyarrow as pa

from entityframes import forks
from entityframes.distributed.sources import read
from entityframes.engines import open_engine, open_tables
from entityframes.engines.base import Engine
from entityframes.engines.batch import PartitionIds
from entityframes.engines.tables import TableEngine
from entityframes.engines.url import Address, Location, parse_url
from entityframes.errors import (
    ConnectError,
    ConnectionLostError,
    DatabaseError,
    DuplicateError,
    EntityFramesError,
    SchemaError,
    TransientError,
)
from entityframes.frames import sources
from entityframes.frames.schema import KEY
from entityframes.interrupt import Interrupt
from entityframes.progress import Reporter
from entityframes.results import UNRESOLVED, UpsertResult
from entityframes.tables import keyed
from entityframes.threads import Threads
from entityframes.writing.entities.upsert import entity_upsert
from entityframes.writing.options import Absent, Nulls, OnDuplicate, Options, TableOptions
from entityframes.writing.tables.upsert import table_upsert
from entityframes.writing.upsert import Upsert

#: Which rows of a partition have a line of their own in its table of outcomes.
Detail = Literal["unresolved", "all"]

#: The maximum length of the message of an error of a reader or of the caller's own function.
_SHOWN = 500

#: Columns of a table of outcomes that an outcome frame does not have.
_ADDED = ("partition", "rows")


@dataclass(frozen=True, kw_only=True)
class Entities:
    """How the rows of a run are written: as entities of a store.

    Attributes:
        namespace: as for `connect`.
        absent, nulls, embed, on_duplicate, batch_size: as for `EntityStore.upsert`.

    Raises:
        ValueError: an option has an unknown value.

    Examples:
        >>> from entityframes.distributed import Entities
        >>> Entities(absent="clear").namespace
        'entityframes'
    """

    namespace: str = "entityframes"
    absent: Absent = "keep"
    nulls: Nulls = "write"
    embed: bool = True
    on_duplicate: OnDuplicate = "last"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        self._options()

    def _options(self, *, initial: bool = False) -> Options:
        return Options(
            absent=self.absent, nulls=self.nulls, embed=self.embed, on_duplicate=self.on_duplicate,
            batch_size=self.batch_size, initial=initial,
        )  # fmt: skip

    def _open(self, location: Location) -> Engine:
        return open_engine(location, self.namespace, 1)

    def _upsert(self, engine: Engine, run_id: str, ids: PartitionIds, *, initial: bool) -> Upsert:
        return entity_upsert(engine, self._options(initial=initial), Interrupt(), run_id=run_id, new_id=ids)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """How the rows of a run are written: into a table of the user.

    Attributes:
        table: its name, as for `table`.
        key: as for `table`.
        on_match: "update" a row whose key is stored, or "skip" it; as for `Table.upsert`. It cannot be "fail": a task
            that runs again would meet the rows that it has written itself.
        nulls, ignore, on_duplicate, batch_size: as for `Table.upsert`.

    Raises:
        ValueError: an option has an unknown value.

    Examples:
        >>> from entityframes.distributed import Rows
        >>> Rows(table="sales.customers", on_match="skip").key
    """

    table: str
    key: str | tuple[str, ...] | None = None
    on_match: Literal["update", "skip"] = "update"
    nulls: Nulls = "write"
    ignore: tuple[str, ...] = ()
    on_duplicate: OnDuplicate = "last"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.on_match not in ("update", "skip"):
            raise ValueError(f"on_match must be 'update' or 'skip', got {self.on_match!r}")
        self._options()

    def _options(self) -> TableOptions:
        return TableOptions(
            on_match=self.on_match, nulls=self.nulls, ignore=tuple(self.ignore), on_duplicate=self.on_duplicate,
            batch_size=self.batch_size,
        )  # fmt: skip

    def _open(self, location: Location) -> TableEngine:
        return open_tables(location, 1)

    def _upsert(self, engine: TableEngine, run_id: str, ids: PartitionIds, *, initial: bool) -> Upsert:
        names = [self.key] if isinstance(self.key, str) else None if self.key is None else list(self.key)
        relation = keyed(engine, engine.describe(self.table), names)
        return table_upsert(engine, relation, self._options(), Interrupt(), run_id=run_id)


class _Connections:
    """The databases that this process has opened, each once, for all tasks that run in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened: dict[tuple[str, str | None], Any] = {}
        #: How many calls have used them.
        self._used = 0
        self.threads = Threads()

    def engine(self, location: Location, target: Entities | Rows) -> Any:
        """The engine for a target.

        Raises:
            ConnectError: the database cannot be opened.
        """
        key = (location.target, target.namespace if isinstance(target, Entities) else None)
        with self._lock:
            self._used += 1
            if key not in self._opened:
                forks.opened()
                self._opened[key] = target._open(location)
            return self._opened[key]

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            self._close()

    def close_if_idle(self, seconds: float) -> None:
        """Close all of them after some seconds, unless they are used again."""
        used = self._used

        def end() -> None:
            with self._lock:
                if self._used == used:
                    self._close()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()

    def _close(self) -> None:
        while self._opened:
            self._opened.popitem()[1].database.close()


_connections = _Connections()


def close() -> None:
    """Close the connections that `upsert_partition` keeps open in this process for its next call.

    They are closed when the process ends, too. A DuckDB file cannot be opened by another process before.

    Examples:
        >>> from entityframes.distributed import close
        >>> close()
    """
    _connections.close()


def close_if_idle(seconds: float) -> None:
    """`close`, after some seconds without a call of `upsert_partition`."""
    _connections.close_if_idle(seconds)


def upsert_partition(
    source: Any,
    url: Address | Callable[[], Address] | None = None,
    *,
    target: Entities | Rows | None = None,
    run_id: str,
    partition: str,
    transform: Callable[[pl.LazyFrame], Any] | None = None,
    outcomes: Detail = "unresolved",
    initial: bool = False,
) -> pa.Table:
    """Write one partition of a run, such as a file, in this process, one batch after the other.

    The call does not fail for data: a frame that does not fit, a file that cannot be read, a row that is refused and a
    missing permission are outcomes. It raises an error if the connection is lost or a deadlock persists, so that the
    engine that runs the tasks runs this one again. What an earlier attempt has stored is not written again, and counts
    as what it became then: an entity that it created is created, not unchanged. For that the ledger of the store is
    consulted. A table of yours has no ledger: there, a row that an earlier attempt has written is unchanged.

    The connections stay open for further calls in this process, which may come from several threads; see `close`.

    Args:
        source: the rows: a path or an address (``s3://...``) of a Parquet or Arrow IPC file, which Polars scans;
            anything that `EntityStore.upsert` takes; or a function that returns one of these, and is called in this
            process. If the same key is in several batches of a stream, a task that is run again counts it as updated; a
            frame in memory has each key once.
        url: as for `connect`, or a function that returns it, so that a password does not travel with the task. None
            uses $ENTITYFRAMES_URL of this process.
        target: how rows are written: `Entities` or `Rows`; None for entities with all defaults.
        run_id: the id of the run, a UUID; the same for all its partitions and attempts.
        partition: the name of the partition, the same for all its attempts.
        transform: makes an entity frame, or a frame with columns of the table, of the LazyFrame of a file, or of a
            frame that was given.
        outcomes: "unresolved" has a line for each row that is in conflict, failed, cancelled or unknown, and one line
            for all rows of each other status; "all" has a line for each row.
        initial: whether the store had no entities when the run began, so that rows are copied without a comparison
            before. If some are stored after all, this takes more time, and the result is the same.

    Returns:
        ``partition`` string, ``row`` uint32 (position in the partition, null for a line that counts rows), the columns
        of the key (of entities ``entity_type`` and ``id`` string), ``status`` string, ``rows`` int64 (the number of
        rows that the line is about), ``batch_id``, ``error_kind``, ``rule``, ``error`` and ``sqlstate`` string; ordered
        by ``row``. If the partition was not read to its end, the last line has the reason: status failed, and null for
        ``row`` and for ``rows``, which are not known. A column of the key of that name is called ``key.partition`` or
        ``key.rows``. The metadata ``entityframes`` of the schema is JSON: ``run_id``, ``partition``, ``batches``,
        ``seconds``, ``node``, ``pid``, and ``resumed``, the number of batches in the ledger that earlier attempts wrote
        (always 0 for a table).

    Raises:
        ConnectionLostError: the connection was lost, and could not be restored for long enough.
        TransientError: a deadlock or another obstacle of that kind persisted.
        ConnectError: the database cannot be opened.
        ValueError: `run_id` is no UUID, or `outcomes` has an unknown value.
        KeyboardInterrupt: on Ctrl-C, after the batch in flight was rolled back.

    Examples:
        >>> import uuid
        >>> from entityframes import distributed
        >>> rows = pl.DataFrame({"entity_type": "note", "id": ["a", "b", None], "content": ["text", "more", ""]})
        >>> rows.write_parquet("notes.parquet")
        >>> run = {"run_id": str(uuid.uuid4()), "partition": "notes.parquet"}
        >>> done = distributed.upsert_partition("notes.parquet", "tasks.duckdb", **run)
        >>> pl.from_arrow(done).select("row", "status", "rows", "rule").rows()
        [(2, 'failed', 1, 'null_key'), (None, 'created', 2, None)]

        Another attempt, as after a crash:

        >>> again = distributed.upsert_partition("notes.parquet", "tasks.duckdb", **run)
        >>> pl.from_arrow(again).select("status", "rows").rows()
        [('failed', 1), ('created', 2)]
        >>> distributed.close()
    """
    forks.check(ConnectError)
    if outcomes not in ("unresolved", "all"):
        raise ValueError(f"outcomes must be 'unresolved' or 'all', got {outcomes!r}")
    run_id = str(uuid.UUID(run_id))
    target = target or Entities()
    started = time.perf_counter()
    ids = PartitionIds(run_id, partition)
    engine = _connections.engine(parse_url(url() if callable(url) else url), target)
    run, failure, resumed = None, None, 0
    try:
        run = target._upsert(engine, run_id, ids, initial=initial)
        given = sources.opened(read(source, transform))
        run.execute(given, Reporter(False, what="upsert"), _connections.threads.submit)
    except (TransientError, ConnectError, MemoryError):
        raise
    except (Exception, pl.exceptions.PanicException) as error:
        failure = error
    result = None if run is None else run.result()
    if result is not None:
        _check_connection(result)
    if run is not None and isinstance(target, Entities):
        resumed = _credit_earlier(run, engine, ids)
        result = run.result()
    facts = {
        "run_id": run_id,
        "partition": partition,
        "batches": result.batches if result else 0,
        "resumed": resumed,
        "seconds": round(time.perf_counter() - started, 3),
        "node": socket.gethostname(),
        "pid": os.getpid(),
    }
    lines = _lines(partition, run, result, failure, outcomes)
    return lines.to_arrow().replace_schema_metadata({"entityframes": json.dumps(facts)})


def _check_connection(result: UpsertResult) -> None:
    """Raise if rows were not written because the connection was lost, or a retry may write them.

    Raises:
        ConnectionLostError, TransientError: the error of the first such row.
    """
    if result.ok:
        return
    bad = result.outcomes.filter(pl.col("status").cast(pl.String).is_in(["failed", "unknown"]))
    lost = bad.filter(pl.col("error_kind").cast(pl.String) == "connection")
    transient = bad.filter(pl.col("sqlstate").is_in(["40001", "40P01", "53300", "55P03"]))
    for found, kind in ((lost, ConnectionLostError), (transient, TransientError)):
        if found.height:
            raise kind(f"{found.height:,} rows were not written: {found['error'][0]}", found["sqlstate"][0])


def _credit_earlier(run: Upsert, engine: Engine, ids: PartitionIds) -> int:
    """Count rows that earlier attempts of this partition have written as what they became then.

    Returns:
        The number of batches of these attempts.
    """
    if not run.counts["unchanged"]:
        return 0
    recorded = engine.batches_between(*ids.range)
    earlier = set(recorded).difference(run.written() if recorded else ())
    if not earlier:
        return 0
    outcomes = run.result().outcomes
    # Of a key that is there twice, the first row was written.
    rows = outcomes.filter(pl.col("status") == "unchanged").unique(KEY, keep="first", maintain_order=True)
    written = pl.concat(
        found.with_columns(piece["row"].gather(found["position"])).drop("position")
        for piece in rows.iter_slices(engine.database.lookup_rows)
        for found in [engine.written_between(piece, *ids.range)]
    )
    written = written.filter(pl.col("batch_id").is_in(pl.Series(list(earlier)).implode())).rename({"batch_id": "by"})

    def credited(piece: pl.DataFrame) -> pl.DataFrame:
        became = pl.when("created").then(pl.lit("created")).otherwise(pl.lit("updated"))
        status = pl.when(pl.col("by").is_null()).then(pl.col("status").cast(pl.String)).otherwise(became)
        return (
            piece.join(written, on="row", how="left", maintain_order="left")
            .with_columns(status.cast(piece.schema["status"]), batch_id=pl.coalesce("by", "batch_id"))
            .drop("by", "created")
        )

    run.amend(credited)
    return len(earlier)


def _lines(
    partition: str, run: Upsert | None, result: UpsertResult | None, failure: BaseException | None, detail: Detail
) -> pl.DataFrame:
    """The table of outcomes of a partition."""
    every = [*_ended(result, failure)] if failure is not None else []
    given = run.outcome_schema if run else dict.fromkeys(("row", *KEY, "status"), pl.String())
    names = list(given)
    key = names[names.index("row") + 1 : names.index("status")]
    own = {name: f"key.{name}" for name in key if name in _ADDED}
    texts = dict.fromkeys(("batch_id", "error_kind", "rule", "error", "sqlstate"), pl.String())
    keys = {own.get(name, name): given[name] for name in key}
    schema: dict[str, pl.DataType] = {"partition": pl.String(), "row": pl.UInt32(), **keys}
    schema |= {"status": pl.String(), "rows": pl.Int64(), **texts}
    if result:
        if detail == "all" or not result.ok:
            single = result.outcomes
            if detail != "all":
                single = single.filter(pl.col("status").cast(pl.String).is_in(UNRESOLVED))
            every.insert(0, single.rename(own).with_columns(pl.lit(1).alias("rows")))
        if detail == "unresolved":
            counted = [(status, n) for status, n in result.counts.items() if n and status not in UNRESOLVED]
            every.insert(0 if result.ok else 1, pl.DataFrame(counted, schema=["status", "rows"], orient="row"))
    none = pl.DataFrame(schema=schema)
    selected = (
        frame.select(pl.col(name).cast(dtype) for name, dtype in schema.items() if name in frame.columns)
        for frame in every
    )
    return pl.concat([none, *selected], how="diagonal").with_columns(pl.lit(partition).alias("partition"))


def unresolved(table: pa.Table) -> pa.Table:
    """A table with the outcomes of all rows, as `upsert_partition` returns it for ``outcomes="unresolved"``."""
    lines = pl.DataFrame(table)
    apart = pl.col("status").is_in(UNRESOLVED)
    counted = lines.filter(~apart).group_by("partition", "status", maintain_order=True).agg(pl.col("rows").sum())
    kept = lines.filter(apart)
    whole = pl.concat(
        [kept.filter(pl.col("row").is_not_null()), counted, kept.filter(pl.col("row").is_null())], how="diagonal"
    )
    return whole.select(lines.columns).to_arrow().replace_schema_metadata(table.schema.metadata)


def _ended(result: UpsertResult | None, failure: BaseException) -> Iterator[pl.DataFrame]:
    """A line with the reason why a partition was not read to its end, or not at all."""
    kind, rule, sqlstate = "validation", "source", None
    message = str(failure).replace(" (see last_result)", "")
    if isinstance(failure, DatabaseError):
        kind, rule, sqlstate = failure.kind, failure.rule or "database", failure.sqlstate
    elif isinstance(failure, SchemaError):
        rule = "schema"
    elif isinstance(failure, DuplicateError):
        rule = "duplicate_key"
    elif not isinstance(failure, EntityFramesError):
        message = f"{type(failure).__name__}: {' '.join(message.split())[:_SHOWN]}"
    notes = result.notes if result else ()
    line = {
        "status": "failed", "error_kind": kind, "rule": rule, "error": ". ".join([message, *notes]),
        "sqlstate": sqlstate,
    }  # fmt: skip
    yield pl.DataFrame([line], schema=dict.fromkeys(line, pl.String))
