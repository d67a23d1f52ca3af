"""An upsert as tasks of Ray: one task a partition, each of which reads its file and writes it by itself."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import ray
from ray import exceptions

from entityframes.distributed import core
from entityframes.distributed.core import Entities, Rows, upsert_partition
from entityframes.distributed.result import Collector, DistributedResult
from entityframes.distributed.sources import is_path, located, partitions
from entityframes.engines.url import parse_url
from entityframes.errors import ConnectError, TransientError
from entityframes.progress import Progress, Reporter
from entityframes.ray import address
from entityframes.ray.address import RemoteAddress
from entityframes.tables import table as open_table

#: Seconds before the first retry of a partition; doubled for each further one, times a random factor.
BACKOFF = 1.0
#: Seconds between two checks of the `cancel` event and of pauses that have passed.
POLL = 0.1
#: Seconds that tasks have, once the run is stopped, to roll their batch back, before their processes are ended.
STOP_SECONDS = 5.0

#: Seconds after which a process closes a connection that no further task has used.
IDLE_SECONDS = 2.0

#: Errors of a task after which it is tried again. Errors of Ray itself are, too: a process or a machine is gone.
_RETRIED = (TransientError, ConnectError, MemoryError)
#: Errors of Ray that another attempt would meet, too.
_LASTING = (exceptions.TaskUnschedulableError, exceptions.RuntimeEnvSetupError)


@dataclass(frozen=True)
class _Work:
    """What all tasks of a run have in common."""

    url: RemoteAddress
    target: Entities | Rows
    run_id: str
    transform: Callable[[pl.LazyFrame], Any] | None
    #: Whether processes keep their connection for the next task: if there are no more of them than connections.
    keep: bool
    #: Whether the store had no entities when the run began.
    initial: bool
    #: Whether the outcomes of all rows are wanted.
    every: bool
    #: The folder for Parquet files with them, or None.
    folder: str | None


@ray.remote(max_retries=0)
def _write(work: _Work, partition: str, number: int, attempt: int, source: Any) -> pa.Table:
    """Write a partition; the result has a line for each unresolved row."""
    try:
        table = upsert_partition(
            source,
            work.url,
            target=work.target,
            run_id=work.run_id,
            partition=partition,
            transform=work.transform,
            outcomes="all" if work.every or work.folder else "unresolved",
            initial=work.initial and attempt == 1,
        )
        if work.folder is None:
            return table
        pl.DataFrame(table).write_parquet(f"{work.folder.rstrip('/')}/{number:06}.parquet", mkdir=True)
        return core.unresolved(table)
    finally:
        if work.keep:
            core.close_if_idle(IDLE_SECONDS)
        else:
            core.close()


@dataclass
class _Task:
    """A partition and its attempts."""

    partition: str
    number: int
    source: Any
    attempts: int = 0
    #: When it may be tried again, by the monotonic clock.
    due: float = 0.0


def upsert(
    source: Any,
    url: RemoteAddress = None,
    *,
    table: str | None = None,
    key: str | Sequence[str] | None = None,
    target: Entities | Rows | None = None,
    transform: Callable[[pl.LazyFrame], Any] | None = None,
    connections: int = 8,
    retries: int = 3,
    outcomes: str = "unresolved",
    progress: Progress = None,
    cancel: threading.Event | None = None,
) -> DistributedResult:
    """Upsert files or frames into PostgreSQL, each as a task of Ray.

    A task reads its file and writes it, batch after batch, in one process and over one connection. If its process or
    its machine dies, or the connection is lost, it is tried again; what an earlier attempt has stored is not written
    again, and the counts of entities are those of a run without faults. (`upsert_partition` in
    `entityframes.distributed` says what is different with a table.) Data that cannot be stored or read is an outcome,
    and the other partitions go on.

    If the same key is in several partitions, tasks wait for each other but do not deadlock, and it is not defined which
    of them comes last.

    Args:
        source: a path or a pattern of Parquet or Arrow IPC files (``data/*.parquet``, ``s3://bucket/*.parquet``), which
            the tasks read from their machines; or a list of paths, frames, and functions that return a frame.
        url: ``postgresql://...`` without a password; a function that returns the address, and is called in each
            process; or None for $ENTITYFRAMES_URL of each process.
        table, key: a table, and its key, as for `table`; None for the entities of a store.
        target: `Entities` or `Rows` with further options, instead of `table` and `key`.
        transform: makes an entity frame, or a frame with columns of the table, of the LazyFrame of a file.
        connections: how many tasks run, and thus how many connections are open, at a time, at least 1.
        retries: how often a partition is tried again, after pauses of about 1, 2, 4, ... seconds.
        outcomes: "unresolved" keeps the outcomes of rows in conflict, failed, cancelled or unknown; "all" keeps those
            of all rows, in files of this machine from 100,000 on; any other text is a folder that all machines can
            write (a path or ``s3://...``), where each task writes a Parquet file with the outcomes of all its rows.
        progress: as for `EntityStore.upsert`, by partition.
        cancel: an event that stops the run when set: batches in flight are rolled back.

    Returns:
        DistributedResult.

    Raises:
        ConnectError: the database cannot be opened from here; the address has a password; or it is a DuckDB file.
        SchemaError: the table does not exist, or its key cannot be used.
        FileNotFoundError: no file matches the pattern.
        ValueError, TypeError: an argument has a value of another kind.
        KeyboardInterrupt: on Ctrl-C, after the tasks have rolled their batches back. The exception has the counts as a
            note, and the result so far as the attribute ``result``.

    Examples:
        Files of people into entities; `url` is the address of a database on PostgreSQL:

        >>> import entityframes.ray
        >>> pl.DataFrame({"email": ["ada@example.org"], "bio": ["First programmer"]}).write_parquet("people-1.parquet")
        >>> pl.DataFrame({"email": ["alan@example.org", None], "bio": ["", ""]}).write_parquet("people-2.parquet")
        >>> result = entityframes.ray.upsert(
        ...     "people-*.parquet",
        ...     url,
        ...     transform=lambda rows: ef.entities(rows, "person", id="email", content="bio"),
        ...     connections=16,
        ... )
        >>> result.counts["created"]
        2
        >>> result.failed.select("row", "rule").rows()
        [(1, 'null_key')]
    """
    if connections < 1 or retries < 0:
        raise ValueError(f"connections must be at least 1 and retries at least 0, got {connections} and {retries}")
    if target is not None and table is not None:
        raise ValueError("give the table in the target, or as table=, not both")
    if table is not None:
        target = Rows(table=table, key=key if key is None or isinstance(key, str) else tuple(key))
    given = partitions(source)
    address.check(url)
    target = target or Entities()
    initial = check_target(url, target)
    if not ray.is_initialized():
        ray.init()
    resources: Callable[[], dict[str, float]] = ray.cluster_resources
    keep = resources().get("CPU", 0) <= connections
    folder = None if outcomes in ("unresolved", "all") else located(outcomes)
    work = _Work(url, target, str(uuid.uuid4()), transform, keep, initial, outcomes == "all", folder)
    run = _Run(work, given, connections, retries)
    with Reporter(progress, len(given), what="upsert", unit="partitions") as reporter:
        return run.execute(reporter, cancel)


def check_target(url: RemoteAddress, target: Entities | Rows) -> bool:
    """Open the database once, so that it is created or migrated once, and an error is raised before any task starts.

    Returns:
        Whether it is a store without entities.
    """
    location = parse_url(url() if callable(url) else url)
    if isinstance(target, Rows):
        key = target.key if isinstance(target.key, str | None) else list(target.key)
        open_table(location, target.table, key).close()
        return False
    engine = target._open(location)
    try:
        return all(piece.is_empty() for piece in engine.select(["id"], None, None, 1))
    finally:
        engine.database.close()


class _Run:
    """One call of `upsert`: starts tasks, retries them, and collects what they return."""

    def __init__(self, work: _Work, given: dict[str, Any], connections: int, retries: int) -> None:
        self._work, self._connections, self._retries = work, connections, retries
        self._collector = Collector(work.run_id, every=work.every)
        self._waiting = deque(
            _Task(name, number, source if is_path(source) else _stored(source))
            for number, (name, source) in enumerate(given.items())
        )
        self._running: dict[ray.ObjectRef[pa.Table], _Task] = {}

    def execute(self, reporter: Reporter, cancel: threading.Event | None) -> DistributedResult:
        """Run all tasks.

        Raises:
            KeyboardInterrupt: on Ctrl-C, after the tasks were stopped.
        """
        reporter.track(self._collector.counts)
        try:
            while self._waiting or self._running:
                if cancel is not None and cancel.is_set():
                    self._stop()
                    break
                self._start()
                self._collect(POLL, reporter)
        except BaseException as error:
            self._stop()
            _explain(error, self._collector.result())
            raise
        return self._collector.result()

    def _start(self) -> None:
        """Start tasks whose pause has passed, as long as there are connections."""
        for _ in range(len(self._waiting)):
            if len(self._running) >= self._connections:
                return
            task = self._waiting.popleft()
            if task.due > time.monotonic():
                self._waiting.append(task)
                continue
            task.attempts += 1
            write = _write.options(name=f"upsert {task.partition}")
            self._running[write.remote(self._work, task.partition, task.number, task.attempts, task.source)] = task

    def _collect(self, seconds: float, reporter: Reporter | None = None) -> None:
        """Wait for tasks to end, at most for some seconds, and collect their results."""
        if not self._running:
            time.sleep(seconds)
            return
        done, _ = ray.wait(list(self._running), num_returns=1, timeout=seconds)
        more, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        for ref in {*done, *more}:
            if self._finish(self._running.pop(ref), ref) and reporter is not None:
                reporter.advance(1)

    def _finish(self, task: _Task, ref: ray.ObjectRef[pa.Table]) -> bool:
        """Collect the result of a task, or queue it again; returns whether it is done."""
        try:
            self._collector.add(ray.get(ref), task.attempts)
            return True
        except exceptions.TaskCancelledError:
            self._cancelled(task)
            return True
        except exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, BaseException) else error
            again = isinstance(cause, _RETRIED)
            if isinstance(cause, exceptions.TaskCancelledError | KeyboardInterrupt):
                self._cancelled(task)
                return True
            message = f"{type(cause).__name__}: {cause}"
        except exceptions.RayError as error:
            again = not isinstance(error, _LASTING)
            message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if again and task.attempts <= self._retries:
            task.due = time.monotonic() + BACKOFF * 2 ** (task.attempts - 1) * random.uniform(0.5, 1.5)
            self._waiting.append(task)
            return False
        tried = "1 attempt" if task.attempts == 1 else f"{task.attempts} attempts"
        self._collector.ended(task.partition, f"{message} ({tried}; batches that were stored are kept)", task.attempts)
        return True

    def _stop(self) -> None:
        """Cancel all tasks: those that run roll their batch back, the others do not start."""
        for ref in self._running:
            ray.cancel(ref)
        deadline = time.monotonic() + STOP_SECONDS
        while self._running and time.monotonic() < deadline:
            self._collect(POLL)
        for ref in self._running:
            ray.cancel(ref, force=True)
        for task in [*self._running.values(), *self._waiting]:
            self._cancelled(task)
        self._running.clear()
        self._waiting.clear()

    def _cancelled(self, task: _Task) -> None:
        what = "the run was stopped"
        if task.attempts:
            what += ": the batch in flight was rolled back, earlier ones are kept"
        self._collector.ended(task.partition, what, task.attempts, status="cancelled", kind=None, rule=None)


def _stored(source: Any) -> Any:
    """A frame in the object store, where several attempts find it; a function as it is."""
    if callable(source):
        return source
    return ray.put(source.to_arrow() if isinstance(source, pl.DataFrame) else source)


def _explain(error: BaseException, result: DistributedResult) -> None:
    """Add to an exception what was done before, and how to continue."""
    counted = ", ".join(f"{count:,} {status}" for status, count in result.counts.items() if count)
    error.add_note(f"Before that: {counted or 'no partition was completed'}. Run the same call again to continue.")
    error.result = result  # type: ignore[attr-defined]
