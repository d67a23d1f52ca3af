"""The life of an embedding job: claim, read what is due, embed, write what is still current, finish.

A job is held by a lease that is renewed while its worker lives; a fence, raised by each claim, keeps a worker whose
lease ran out from writing. Nothing is remembered between two looks at the store: what is due is what the store says.
A worker has two threads: while one writes, the other embeds what comes next, of the same job or of another one.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import polars as pl

from entityframes.embedding.calls import Calls, StoppedError
from entityframes.embedding.embedders.base import Embedder
from entityframes.embedding.jobs import Left
from entityframes.engines.base import Engine
from entityframes.engines.embedding import Job, JobEnd, LeaseLostError, Worker
from entityframes.errors import DatabaseError, EmbedderBusyError, EmbedderError, TransientError
from entityframes.frames.schema import KEY
from entityframes.interrupt import Interrupt
from entityframes.progress import Reporter
from entityframes.results import EMBED_STATUSES, EmbedResult, OutcomeLog, outcome_schema, outcomes
from entityframes.retry import retry

#: Seconds after which a job is taken from a worker that was not heard of; it renews its lease three times as often.
LEASE = 60.0
#: Vectors are written when the engine has enough of them, or when the oldest has waited so many seconds.
WRITE_SECONDS = 2.0
#: Seconds before work on a job is resumed after an error of the database that may pass.
RESUME_PAUSES = (0.2, 0.4, 0.8, 1.6)
#: Seconds between two looks at whether the jobs of other workers are done.
POLL = (0.05, 1.0)
#: What is told of rows whose job another worker has by now.
LOST: dict[str, Any] = {"status": "skipped", "error": "its job went to another worker"}
#: Seconds that a run which is broken off waits for its threads; an embedder may not come back.
PATIENCE = 1.5

T = TypeVar("T")

_logger = logging.getLogger("entityframes")

_names: dict[int, str] = {}


def process_name() -> str:
    """Tells this process from every other, on every machine and at every time."""
    pid = os.getpid()
    # Threads that ask at the same time get one answer: a worker takes the jobs of other processes for abandoned.
    return _names.setdefault(pid, f"{socket.gethostname()}/{pid}/{uuid.uuid4().hex[:8]}/")


_numbers = itertools.count()


@dataclass(frozen=True)
class EmbedOptions:
    """What the caller of `embed` decides."""

    batch_size: int | None = None
    workers: int = 1
    max_attempts: int = 3
    lease: float = LEASE
    #: Told why the embedder is waited for, before each wait.
    delayed: Callable[[str], None] = lambda error: None

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers", "max_attempts"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or value < 1):
                raise ValueError(f"{name} is {value!r}: it is a number, at least 1")


@dataclass
class _Unwritten:
    """Rows and vectors that wait to be written."""

    rows: list[pl.DataFrame]
    vectors: list[np.ndarray[Any, Any]]
    since: float = 0.0

    def add(self, rows: pl.DataFrame, vectors: np.ndarray[Any, Any]) -> None:
        self.since = self.since if self.rows else time.monotonic()
        self.rows.append(rows)
        self.vectors.append(vectors)

    @property
    def height(self) -> int:
        return sum(part.height for part in self.rows)

    def enough(self, write_bytes: int) -> bool:
        waited = time.monotonic() - self.since
        return sum(part.nbytes for part in self.vectors) >= write_bytes or waited >= WRITE_SECONDS


class _Writing:
    """The thread of a worker that writes: one thing after another, in the order in which they were given."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="entityframes-write")
        self._last: Future[Any] | None = None
        self._keys: pl.DataFrame | None = None

    def then(self, do: Callable[..., Any], *given: Any) -> None:
        """Do it as soon as what was given before is done; waits for that, and raises what it raised."""
        self.wait()
        self._last = self._thread.submit(do, *given)

    def write(self, do: Callable[..., Any], job: Job, unwritten: _Unwritten, end: JobEnd) -> None:
        """The same for rows and vectors, whose keys are known to `has` meanwhile."""
        self.then(do, job, unwritten, end)
        self._keys = pl.concat([part.select(KEY) for part in unwritten.rows])

    def has(self, rows: pl.DataFrame) -> bool:
        """Whether one of these rows may be being written."""
        return self._keys is not None and not rows.join(self._keys, on=KEY, how="semi").is_empty()

    def wait(self) -> None:
        """Until all is done; raises what the last one raised."""
        last, self._last, self._keys = self._last, None, None
        if last is not None:
            last.result()

    def close(self) -> None:
        self._thread.shutdown()


class EmbedRun:
    """One call of `embed`: its threads work off the jobs of a space until none is left."""

    def __init__(self, engine: Engine, embedder: Embedder, space: str, options: EmbedOptions) -> None:
        self._engine = engine
        self._embedder = embedder
        self._space = space
        self._options = options
        self._interrupt = Interrupt()
        #: Set to end the run after the batch in flight.
        self._stopping = threading.Event()
        self._calls = Calls(embedder, options.max_attempts, self._stopping, self._delayed)
        self._batch = max(1, min(options.batch_size or embedder.max_batch, embedder.max_batch))
        self._log = OutcomeLog(EMBED_STATUSES)
        self._logging = threading.Lock()
        self._rows = 0
        self._batches = 0
        self._waiting = 0
        self._held: dict[str, Job] = {}
        self._fatal: BaseException | None = None
        self._started = time.perf_counter()

    def result(self) -> EmbedResult:
        """What has happened so far."""
        with self._logging:
            counts = dict(self._log.counts)
        elapsed = time.perf_counter() - self._started
        left = Left(self._engine, self._space)
        return EmbedResult(
            counts, self._batches, elapsed, self._log, self._space, self._calls.count, self._waiting, left.in_no_job
        )

    def execute(self, reporter: Reporter, cancel: threading.Event | None) -> EmbedResult:
        """Work until no job of the space is left; `result` stays right whatever is raised.

        Raises:
            KeyboardInterrupt: on Ctrl-C; what was not written is given back.
            EmbedderError: the embedder cannot work at all.
            DatabaseError: the database cannot.
        """
        threads = [
            threading.Thread(target=self._work, name=f"entityframes-embed-{number}", daemon=True)
            for number in range(self._options.workers)
        ]
        if cancel is not None and cancel.is_set():
            self._stopping.set()
        for thread in threads:
            thread.start()
        try:
            renewed = time.monotonic()
            told = 0
            while any(thread.is_alive() for thread in threads):
                threads[0].join(0.05) if threads[0].is_alive() else time.sleep(0.05)
                if cancel is not None and cancel.is_set():
                    self._stopping.set()
                told = self._tell(reporter, told)
                if time.monotonic() - renewed > self._options.lease / 3:
                    self._renew()
                    renewed = time.monotonic()
            self._tell(reporter, told)
        except BaseException:
            if not self._interrupt.forked:
                self._break_off(threads)
            raise
        if self._fatal is not None:
            raise self._fatal
        self._waiting = Left(self._engine, self._space).waiting(stopped=self._stopping.is_set())
        result = self.result()
        if not result.rows and _logger.isEnabledFor(logging.INFO):
            _logger.info("%r", result)
        return result

    # The run, in the caller's thread.

    def _tell(self, reporter: Reporter, told: int) -> int:
        with self._logging:
            done, counts = self._rows, dict(self._log.counts)
        if done > told:
            reporter.advance(done - told, counts)
        return done

    def _renew(self) -> None:
        for job in list(self._held.values()):
            try:
                self._engine.embedding.move(job, JobEnd("running", lease=self._options.lease))
            except TransientError:
                continue

    def _break_off(self, threads: list[threading.Thread]) -> None:
        """Cancel what the database does; threads that do not come back lose their jobs."""
        self._stopping.set()
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and any(thread.is_alive() for thread in threads):
            self._interrupt.fire()
            time.sleep(0.02)
        for job in list(self._held.values()):
            self._give_back(job)

    def _give_back(self, job: Job, state: str = "pending", error: str | None = None) -> None:
        self._held.pop(job.job_id, None)
        try:
            self._engine.embedding.move(job, JobEnd(state, error))
        except DatabaseError:
            # Its lease will end.
            return

    # One worker: its thread that embeds.

    def _work(self) -> None:
        process = process_name()
        worker = Worker(f"{process}{next(_numbers)}", process, self._options.lease)
        writing = _Writing()
        try:
            idle = 0
            while not self._stopping.is_set():
                job = self._claimed(worker)
                if job is not None:
                    idle = 0
                    self._work_off(job, writing)
                    continue
                writing.wait()
                if not self._engine.embedding.open_jobs(self._space):
                    break
                # Of workers that are alive, or that will be found dead when their lease ends.
                self._stopping.wait(min(POLL[0] * 2**idle, POLL[1]))
                idle += 1
            writing.wait()
        except BaseException as error:
            self._fatal = self._fatal or error
            self._stopping.set()
        finally:
            writing.close()

    def _claimed(self, worker: Worker) -> Job | None:
        job: Job | None = self._retried(lambda: self._engine.embedding.claim(self._space, worker))
        if job is not None:
            self._held[job.job_id] = job
            if job.taken_over:
                _logger.info(
                    "job %s of space %s is taken over from a worker whose lease ran out", job.job_id, job.space
                )
        return job

    def _retried(self, ask: Callable[[], T]) -> T:
        """Ask the database, again where that helps, until the run is stopped."""
        return retry(ask, pauses=RESUME_PAUSES, wait=self._stopping.wait, what=f"embedding into space {self._space}")

    def _work_off(self, job: Job, writing: _Writing) -> None:
        """Embed what is due of a job and have it written, and the job finished or given back."""
        embedding = self._engine.embedding
        try:
            rows = self._retried(lambda: embedding.members(job))
            if writing.has(rows):
                # Also of the job before, whose vectors are not there yet.
                writing.wait()
                rows = self._retried(lambda: embedding.members(job))
            if rows.is_empty():
                self._retried(lambda: embedding.move(job, JobEnd("done")))
                self._held.pop(job.job_id, None)
            else:
                self._embed(job, rows, writing)
        except BaseException as error:
            with suppress(DatabaseError):
                # What was embedded before is still written.
                writing.wait()
            self._give_back(job, error=str(error)[:500])
            raise

    def _embed(self, job: Job, rows: pl.DataFrame, writing: _Writing) -> None:
        """Batch after batch; those that were embedded when something goes wrong are still written."""
        done = 0
        unwritten = _Unwritten([], [])
        running = JobEnd("running", lease=self._options.lease)
        told: dict[str, Any] = {"status": "cancelled"}
        try:
            for batch in rows.iter_slices(self._batch):
                if self._stopping.is_set():
                    raise StoppedError
                if job.job_id not in self._held:
                    raise LeaseLostError
                vectors, errors = self._calls.embed(batch["content"].to_list())
                unwritten.add(batch.drop("content").with_columns(error=pl.Series(errors, dtype=pl.String)), vectors)
                last = done + unwritten.height == rows.height
                if last or unwritten.enough(self._engine.embedding.write_bytes):
                    writing.write(self._write, job, unwritten, JobEnd("done") if last else running)
                    done += unwritten.height
                    unwritten = _Unwritten([], [])
        except (StoppedError, EmbedderError) as error:
            if unwritten.rows:
                writing.write(self._write, job, unwritten, running)
                done += unwritten.height
            if isinstance(error, StoppedError):
                writing.then(self._give_back, job)
                return
            if not isinstance(error, EmbedderBusyError):
                raise
            # Tried as often as allowed. The texts are not at fault: they stay due.
            told = {"status": "failed", "error_kind": "embedder", "error": str(error)}
            tried = replace(job, attempts=job.attempts + self._options.max_attempts)
            writing.then(self._give_back, tried, "failed", str(error)[:500])
        except LeaseLostError:
            told = LOST
        finally:
            self._log_rows(job, rows.slice(done), **told)

    # One worker: its thread that writes.

    def _write(self, job: Job, unwritten: _Unwritten, end: JobEnd) -> None:
        """Write what was embedded, each vector unless its content has changed, and account for it."""
        rows = pl.concat(unwritten.rows)
        try:
            written = self._written(job, rows, np.concatenate(unwritten.vectors), end)
        except LeaseLostError:
            # Whoever has it now works it off.
            self._held.pop(job.job_id, None)
            self._log_rows(job, rows, **LOST)
            return
        except BaseException as error:
            self._log_rows(job, rows, status="cancelled")
            self._give_back(job, error=str(error)[:500])
            raise
        if end.state == "done":
            self._held.pop(job.job_id, None)
        told = rows.join(written.with_columns(written=True), on=KEY, how="left", maintain_order="left")
        refused = pl.col("error").is_not_null()
        status = (
            pl.when(pl.col("written").is_null())
            .then(pl.lit("skipped"))
            .when(refused)
            .then(pl.lit("failed"))
            .otherwise(pl.lit("embedded"))
        )
        kind = pl.when(refused & pl.col("written").is_not_null()).then(pl.lit("embedder"))
        self._log_rows(job, told, batches=1, status=status, error_kind=kind)

    def _written(self, job: Job, rows: pl.DataFrame, vectors: np.ndarray[Any, Any], end: JobEnd) -> pl.DataFrame:
        """The keys of the rows that were written."""
        tried = False

        def write() -> pl.DataFrame:
            nonlocal tried
            try:
                return self._engine.embedding.write_vectors(job, rows, vectors, end, self._interrupt)
            except LeaseLostError:
                if not tried:
                    raise
                # The try before may have been committed without an answer, and have finished the job.
                return self._stored(job, rows)
            finally:
                tried = True

        written: pl.DataFrame = self._retried(write)
        return written

    def _stored(self, job: Job, rows: pl.DataFrame) -> pl.DataFrame:
        """Those of some rows whose content is embedded, by the store's own word."""
        there = self._engine.lookup(rows.select(KEY))
        same = there.filter(pl.col("content_hash") == rows["content_hash"].bin.encode("hex").gather(there["position"]))
        due = self._engine.embedding.members(job).select(KEY)
        return rows[same["position"]].select(KEY).join(due, on=KEY, how="anti")

    def _log_rows(self, job: Job, rows: pl.DataFrame, batches: int = 0, **told: Any) -> None:
        with self._logging:
            numbered = rows.with_row_index("row", self._rows)
            self._rows += rows.height
            self._batches += batches
            self._log.append(outcomes(numbered, outcome_schema(EMBED_STATUSES), job_id=job.job_id, **told))

    def _delayed(self, error: str, tries: int) -> None:
        """While the embedder is busy, `jobs` shows why nothing moves."""
        self._options.delayed(error)
        for job in list(self._held.values()):
            waiting = replace(job, attempts=job.attempts + tries)
            try:
                self._engine.embedding.move(waiting, JobEnd("running", error[:500], self._options.lease))
            except DatabaseError:
                continue
