"""Embedding with actors of Ray: each loads the model once, and claims jobs of the store until none is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import polars as pl
import pyarrow as pa
import ray
from ray import exceptions

from entityframes.embedding import Embedder, spaces
from entityframes.embedding.jobs import Remaining
from entityframes.embedding.worker import EmbedOptions, EmbedRun, process_name
from entityframes.engines import open_engine
from entityframes.engines.base import Engine
from entityframes.engines.url import parse_url
from entityframes.errors import ConnectError, EmbedderError, TransientError
from entityframes.frames.schema import KEY
from entityframes.progress import Progress, Reporter
from entityframes.ray import address
from entityframes.ray.address import RemoteAddress
from entityframes.results import EMBED_STATUSES, EmbedResult, OutcomeLog, outcome_schema, outcomes

#: The number of keys in a job, so that the last ones are shared by all actors.
JOB_KEYS = 1_000
#: The number of jobs that an actor processes before it reports their outcomes.
JOBS = 8
#: Seconds between two checks of the `cancel` event, and before an actor that found no job looks again.
POLL = 0.1
#: Seconds between two splits of jobs that were added meanwhile.
SPLIT = 5.0
#: Seconds that an actor has to end the batch in flight, once the run is stopped.
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class _Model:
    """What an actor is made from."""

    url: RemoteAddress
    namespace: str
    factory: Callable[[], Embedder]
    batch_size: int | None
    max_attempts: int


@dataclass(frozen=True)
class _Ready:
    """An actor that can embed."""

    #: The name of its process.
    process: str
    space: str
    #: Whether it has created the space.
    made: bool


@dataclass(frozen=True)
class _Step:
    """What an actor has done in one call."""

    outcomes: pa.Table
    batches: int
    calls: int


class _Actor:
    """Embeds with one model over one store. Methods run in two threads, so that `stop` reaches a `step`."""

    def __init__(self, model: _Model) -> None:
        self._model = model
        self._stop = threading.Event()

    def ready(self, space: str | None) -> _Ready:
        """Open the store, load the model, and find or create the space."""
        url = self._model.url
        self._engine = open_engine(parse_url(url() if callable(url) else url), self._model.namespace, 1)
        self._embedder = self._model.factory()
        name, self._passages, made = spaces.resolve(self._engine, self._embedder, space, None)
        return _Ready(process_name(), name, made)

    def step(self, space: str) -> _Step:
        """Process some jobs."""
        options = EmbedOptions(self._model.batch_size, max_attempts=self._model.max_attempts, jobs=JOBS)
        run = EmbedRun(self._engine, self._embedder, space, options, self._passages)
        with Reporter(False, what="embed") as reporter:
            run.execute(reporter, self._stop)
        result = run.result()
        return _Step(result.outcomes.to_arrow(), result.batches, result.calls)

    def stop(self) -> None:
        """End the batch in flight, and release the job."""
        self._stop.set()


@dataclass
class _Worker:
    """An actor, and what it is doing."""

    actor: Any
    #: The name of its process, once it is known.
    process: str = ""
    #: The call in flight, and when the next one may begin.
    call: Any = None
    due: float = 0.0


def embed(
    url: RemoteAddress,
    factory: Callable[[], Embedder],
    *,
    num_workers: int,
    num_gpus: float = 0,
    num_cpus: float = 1,
    namespace: str = "entityframes",
    space: str | None = None,
    batch_size: int | None = None,
    max_attempts: int = 3,
    retries: int = 3,
    progress: Progress = None,
    cancel: threading.Event | None = None,
) -> EmbedResult:
    """Embed the entities of a store on PostgreSQL that are due, with actors of Ray.

    Each actor loads its model once, and works over one connection of its own (two while it writes). Jobs are split, so
    that all actors have work to the end. If an actor dies, its jobs are given to the others at once, and what it had
    written is counted; another actor takes its place.

    Args:
        url: as for `entityframes.ray.upsert`.
        factory: makes the embedder; called once in each actor.
        num_workers: the number of actors, at least 1.
        num_gpus, num_cpus: what each actor reserves; a fraction lets several share one.
        namespace: as for `connect`.
        space, batch_size, max_attempts: as for `EntityStore.embed`.
        retries: how many actors are replaced, and how often an actor that has lost its connection tries again, for each
            of `num_workers`.
        progress, cancel: as for `EntityStore.embed`.

    Returns:
        EmbedResult, as of `EntityStore.embed`.

    Raises:
        ConnectError: the store cannot be opened; the address has a password; or it is a DuckDB file.
        SpaceError: the space belongs to another model or dimension, or its name is invalid.
        EmbedderError: the embedder cannot work at all, or every actor has died.
        DatabaseError: the connection was lost again and again.
        ValueError: `num_workers` is less than 1.
        KeyboardInterrupt: on Ctrl-C, after the actors were stopped.

    Examples:
        Two actors; with ``num_gpus=0.5`` they would share a GPU. `url` is the address of a store on PostgreSQL:

        >>> import entityframes.ray
        >>> notes = pl.DataFrame({"entity_type": "note", "id": ["a", "b"], "content": ["Ada", "Alan"]})
        >>> with ef.connect(url) as store:
        ...     result = store.upsert(notes)
        >>> entityframes.ray.embed(url, lambda: ef.HashingEmbedder(64), num_workers=2).counts["embedded"]
        2
    """
    if num_workers < 1 or retries < 0:
        raise ValueError(f"num_workers must be at least 1 and retries at least 0, got {num_workers} and {retries}")
    EmbedOptions(batch_size, max_attempts=max_attempts)
    address.check(url)
    model = _Model(url, namespace, factory, batch_size, max_attempts)
    engine = open_engine(parse_url(url() if callable(url) else url), namespace, 1)
    try:
        # The type hints of Ray lack max_concurrency.
        make: Any = ray.remote(_Actor)
        make = make.options(num_gpus=num_gpus, num_cpus=num_cpus, max_restarts=0, max_concurrency=2)
        run = _Run(engine, lambda: _Worker(make.remote(model)), num_workers, retries * num_workers)
        with Reporter(progress, run.due, what="embed", unit="texts") as reporter:
            return run.execute(space, reporter, cancel)
    finally:
        engine.database.close()


@dataclass
class _Run:
    """One call of `embed`: gives the actors work, replaces those that die, and collects what they return."""

    engine: Engine
    make: Callable[[], _Worker]
    size: int
    #: The number of remaining retries.
    retries: int
    workers: list[_Worker] = field(default_factory=list)
    log: OutcomeLog = field(default_factory=lambda: OutcomeLog(EMBED_STATUSES))
    rows: int = 0
    batches: int = 0
    calls: int = 0
    #: The jobs whose outcomes an actor has reported, and the rows that dead actors had written in other jobs.
    reported: set[str] = field(default_factory=set)
    credited: pl.DataFrame = field(
        default_factory=lambda: pl.DataFrame(schema=dict.fromkeys(["job_id", *KEY], pl.String))
    )
    #: When the run began, by the clock of the database, and when jobs are split again.
    began: datetime | None = None
    split_at: float = 0.0
    notes: list[str] = field(default_factory=list)
    space: str = ""

    def due(self) -> int:
        """The number of entities that are due."""
        return int(self.engine.stats(self.space or None)["due"].sum())

    def execute(self, space: str | None, reporter: Reporter, cancel: threading.Event | None) -> EmbedResult:
        """Embed until no job is left.

        Raises:
            EmbedderError, SpaceError, DatabaseError: an actor cannot work.
        """
        started, self.began = time.perf_counter(), self.engine.embedding.now()
        reporter.track(self.log.counts)
        self.workers = [self.make() for _ in range(self.size)]
        stopped = False
        try:
            # The first one creates the space, if there is none.
            made = self._ready(self.workers[0], space)
            try:
                while not stopped and not self._done():
                    self._split()
                    self._call()
                    reporter.advance(self._collect())
                    stopped = cancel is not None and cancel.is_set()
                self._stop(reporter)
            except EmbedderError:
                if made:
                    spaces.undo(self.engine, self.space)
                raise
        finally:
            for worker in self.workers:
                ray.kill(worker.actor)
                if worker.process:
                    self.engine.embedding.give_back(worker.process)
        remaining = Remaining(self.engine, self.space)
        waiting = remaining.waiting(stopped=stopped)
        unqueued = remaining.in_no_job()
        return EmbedResult(
            dict(self.log.counts), self.batches, time.perf_counter() - started, self.log, self.space, self.calls,
            waiting, lambda: unqueued, notes=tuple(self.notes),
        )  # fmt: skip

    def _ready(self, worker: _Worker, space: str | None) -> bool:
        """Wait until an actor has loaded its model, and replace it if it dies; returns whether it created the space."""
        while True:
            try:
                ready = ray.get(worker.actor.ready.remote(space))
                worker.process, self.space = ready.process, ready.space
                return bool(ready.made)
            except exceptions.RayTaskError as error:
                raise _cause(error) from None
            except exceptions.RayError as error:
                self._replace(worker, error)

    def _done(self) -> bool:
        return all(worker.call is None for worker in self.workers) and not self.engine.embedding.open_jobs(self.space)

    def _split(self) -> None:
        """Split large jobs, now and then."""
        if time.monotonic() >= self.split_at:
            self.engine.embedding.split_jobs(self.space, JOB_KEYS)
            self.split_at = time.monotonic() + SPLIT

    def _call(self) -> None:
        """Give work to actors that have none."""
        for worker in self.workers:
            if worker.call is None and worker.due <= time.monotonic():
                actor = worker.actor
                worker.call = actor.step.remote(self.space) if worker.process else actor.ready.remote(self.space)

    def _collect(self) -> int:
        """Wait for calls to end, and collect their results; returns the number of outcomes."""
        calls = {worker.call: worker for worker in self.workers if worker.call is not None}
        if not calls:
            time.sleep(POLL)
            return 0
        before = self.rows
        done, _ = ray.wait(list(calls), num_returns=1, timeout=POLL)
        for call in done:
            worker = calls[call]
            worker.call = None
            try:
                self._add(worker, ray.get(call))
            except exceptions.RayTaskError as error:
                cause = _cause(error)
                if not isinstance(cause, TransientError | ConnectError) or not self._retry():
                    raise cause from None
                worker.due = time.monotonic() + 1.0
            except exceptions.RayError as error:
                self._replace(worker, error)
        return self.rows - before

    def _add(self, worker: _Worker, result: Any) -> None:
        """Collect what an actor has done."""
        if isinstance(result, _Ready):
            worker.process = result.process
            return
        self.batches += result.batches
        self.calls += result.calls
        found = pl.DataFrame(result.outcomes)
        self.reported.update(found["job_id"].drop_nulls().unique())
        self._log(found)
        if found.is_empty():
            # Other workers hold the jobs that are left.
            worker.due = time.monotonic() + POLL

    def _log(self, found: pl.DataFrame) -> None:
        numbered = found.drop("row", strict=False).with_row_index("row", self.rows)
        self.rows += found.height
        self.log.append(outcomes(numbered, outcome_schema(EMBED_STATUSES)))

    def _retry(self) -> bool:
        """Whether there is a retry left, which is then used."""
        self.retries -= 1
        return self.retries >= 0

    def _replace(self, worker: _Worker, error: exceptions.RayError) -> None:
        """Count what a dead actor had written, give its jobs to the others, and start another actor.

        Raises:
            EmbedderError: too many actors have died.
        """
        if worker.process and self.began is not None:
            written = self.engine.embedding.embedded_by(worker.process, self.space, self.began)
            written = written.filter(~pl.col("job_id").is_in(list(self.reported)))
            written = written.join(self.credited, on=["job_id", *KEY], how="anti")
            self.credited = pl.concat([self.credited, written.select("job_id", *KEY)])
            failed = pl.col("error").is_not_null()
            self._log(
                written.with_columns(
                    status=pl.when(failed).then(pl.lit("failed")).otherwise(pl.lit("embedded")),
                    error_kind=pl.when(failed).then(pl.lit("embedder")),
                )
            )
            self.engine.embedding.give_back(worker.process)
        what = " ".join(str(error).split())[:200]
        if not self._retry():
            raise EmbedderError(f"actors died again and again, the last one with: {what}")
        self.notes.append(f"An actor died and was replaced: {what}")
        fresh = self.make()
        worker.actor, worker.process, worker.call, worker.due = fresh.actor, "", None, time.monotonic() + 1.0

    def _stop(self, reporter: Reporter) -> None:
        """Let the calls in flight end: each actor ends its batch and releases its job."""
        for worker in self.workers:
            if worker.call is not None:
                worker.actor.stop.remote()
        deadline = time.monotonic() + STOP_SECONDS
        while any(worker.call is not None for worker in self.workers) and time.monotonic() < deadline:
            reporter.advance(self._collect())


def _cause(error: exceptions.RayTaskError) -> BaseException:
    """The error that an actor has raised."""
    return error.cause if isinstance(error.cause, Exception) else error
