"""Embedding workers. A job is claimed, its due entities are read, cut, embedded and written if still current.

Only texts that have no vector in the space are sent to the embedder, each of them once, the shortest first, as models
pad the texts of a batch to the longest. Vectors are written before the passages that use them, or with them, so a long
content is never held as one batch of vectors.

A worker holds a job by a lease, which it renews while it runs. A fencing token, incremented by each claim, keeps a
worker whose lease has expired from writing. Workers keep no state between queries: the store determines what is due.
A worker has two threads: while one writes, the other embeds the next batch, of the same job or of the next one.
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
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import polars as pl

from entityframes.embedding.calls import Calls, StoppedError
from entityframes.embedding.embedders.base import Embedder
from entityframes.embedding.jobs import Remaining
from entityframes.embedding.texts import SCHEMA, cut
from entityframes.engines.base import Engine
from entityframes.engines.embedding import Embedded, Job, JobEnd, LeaseLostError, VectorsGoneError, Worker
from entityframes.errors import DatabaseError, EmbedderBusyError, EmbedderError, TransientError
from entityframes.frames.schema import KEY
from entityframes.interrupt import Interrupt
from entityframes.progress import Reporter
from entityframes.results import EMBED_STATUSES, EmbedResult, OutcomeLog, outcome_schema, outcomes
from entityframes.retry import retry

if TYPE_CHECKING:
    from entityframes.embedding.passages import Passages

#: Seconds until the lease of a job expires; a worker renews it three times as often.
LEASE = 60.0
#: Vectors are written once there are `write_bytes` of them, or once the oldest has waited this many seconds.
WRITE_SECONDS = 2.0
#: Seconds before each retry after a transient error of the database.
RESUME_PAUSES = (0.2, 0.4, 0.8, 1.6)
#: The shortest and the longest pause, in seconds, between two polls for the jobs of other workers.
POLL = (0.05, 1.0)
#: About how many bytes of content are cut at once.
CUT_BYTES = 16 << 20
#: The outcome of rows whose job was taken over by another worker.
LOST: dict[str, Any] = {"status": "skipped", "error": "another worker took the job over"}
#: Why an entity is skipped whose content is white space only.
EMPTY = "there is nothing to embed: the content is white space only"
#: The outcome of rows whose vectors were deleted between their look-up and their use.
GONE: dict[str, Any] = {"status": "skipped", "error": "a vector was deleted meanwhile; the job runs again"}
#: Seconds that an aborted run waits for its threads, as a call of an embedder may never return; and for a write, which
#: is cancelled meanwhile, and without whose outcome the result would be wrong.
ABORT_SECONDS = 1.5
ABORT_WRITE_SECONDS = 20.0

T = TypeVar("T")
Array = np.ndarray[Any, Any]

_NO_ENTITIES = pl.DataFrame(
    schema={
        "row": pl.UInt32,
        "entity_type": pl.String,
        "id": pl.String,
        "content_hash": pl.Binary,
        "metadata_hash": pl.Binary,
        "stored": pl.Boolean,
        "empty": pl.Boolean,
        "error": pl.String,
    }
)
_NO_TEXTS = pl.DataFrame(schema={"text_hash": pl.Binary})

_logger = logging.getLogger("entityframes")

_names: dict[int, str] = {}


def process_name() -> str:
    """A name that is unique to this process, across machines and restarts."""
    pid = os.getpid()
    # setdefault is atomic, so all threads get the same name: workers consider jobs of other processes abandoned.
    return _names.setdefault(pid, f"{socket.gethostname()}/{pid}/{uuid.uuid4().hex[:8]}/")


_numbers = itertools.count()


@dataclass(frozen=True)
class EmbedOptions:
    """The options of `embed`."""

    batch_size: int | None = None
    workers: int = 1
    max_attempts: int = 3
    lease: float = LEASE
    #: Called with the error of the embedder before each wait.
    delayed: Callable[[str], None] = lambda error: None
    #: How many jobs each worker processes at most, of those that it can claim at once; None: until none is left.
    jobs: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers", "max_attempts", "jobs"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or value < 1):
                raise ValueError(f"{name} must be a positive integer, got {value!r}")


class _Part:
    """Entities that are cut at once, and their texts that have no vector yet.

    Args:
        entities: row, and the columns of `EmbeddingEngine.members`.
        passages: their passages, with the columns of `texts.SCHEMA`.
        embedded: text_hash and error of their texts that have a vector or an error.
    """

    def __init__(self, entities: pl.DataFrame, passages: pl.DataFrame, embedded: pl.DataFrame) -> None:
        texts = passages.select("text_hash", "text").drop_nulls().unique("text_hash", maintain_order=True)
        missing = texts.join(embedded, on="text_hash", how="anti", maintain_order="left")
        #: text_hash and text, the shortest first.
        self.missing = missing.sort(pl.col("text").str.len_bytes(), maintain_order=True)
        numbers = self.missing.select("text_hash").with_row_index("number", 1)
        # An entity is complete once the last of its missing texts is embedded: none is 0.
        last = passages.join(numbers, on="text_hash", how="left").group_by("row").agg(
            last=pl.col("number").max().fill_null(0), passages=pl.len(), empty=pl.col("text_hash").is_null().any()
        )  # fmt: skip
        ordered = entities.join(last, on="row", maintain_order="left").sort("last", maintain_order=True)
        self._entities = ordered.drop("last", "passages")
        self._last = ordered["last"].to_numpy()
        #: The passages in the order of the entities, and where those of each begin.
        self._passages = ordered.select("row").join(passages.drop("text"), on="row", maintain_order="left_right")
        self._begins = np.concatenate([[0], ordered["passages"].to_numpy().cumsum()])
        self._errors = embedded.drop_nulls("error")
        self._done = 0

    def add_errors(self, texts: pl.DataFrame) -> None:
        """Add the errors of texts: text_hash, error."""
        self._errors = pl.concat([self._errors, texts.drop_nulls("error")])

    def complete(self, embedded: int) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The entities that are complete now that this many of the missing texts are embedded, but were not before.

        Returns:
            Their rows with the columns empty (whether there is no text) and error (of their first text that failed, or
            null), and their passages.
        """
        end = int(np.searchsorted(self._last, embedded, side="right"))
        entities = self._entities[self._done : end]
        passages = self._passages[int(self._begins[self._done]) : int(self._begins[end])]
        self._done = end
        if self._errors.is_empty():
            return entities.with_columns(error=pl.lit(None, pl.String)), passages
        errors = passages.join(self._errors, on="text_hash", maintain_order="left")
        place = pl.format("characters {} to {}: {}", "start", "end", "error")
        first = errors.select("row", error=pl.coalesce(place, "error")).unique("row", keep="first", maintain_order=True)
        return entities.join(first, on="row", how="left", maintain_order="left"), passages


@dataclass
class _Buffer:
    """What is not written yet: texts with their vectors, and entities with their passages."""

    dim: int
    texts: list[pl.DataFrame] = field(default_factory=list)
    vectors: list[Array] = field(default_factory=list)
    entities: list[pl.DataFrame] = field(default_factory=list)
    passages: list[pl.DataFrame] = field(default_factory=list)
    since: float = 0.0

    def add(self, texts: pl.DataFrame, vectors: Array) -> None:
        self.since = self.since if self.texts else time.monotonic()
        self.texts.append(texts)
        self.vectors.append(vectors)

    def add_complete(self, entities: pl.DataFrame, passages: pl.DataFrame) -> None:
        if entities.height:
            self.entities.append(entities)
            self.passages.append(passages)

    @property
    def is_empty(self) -> bool:
        return not self.texts and not self.entities

    def is_full(self, write_bytes: int) -> bool:
        waited = time.monotonic() - self.since
        return sum(part.nbytes for part in self.vectors) >= write_bytes or waited >= WRITE_SECONDS

    def rows(self) -> pl.DataFrame:
        """The entities, in key order."""
        return pl.concat(self.entities).sort("row") if self.entities else _NO_ENTITIES

    def embedded(self) -> Embedded:
        empty = pl.DataFrame(schema=SCHEMA)
        return Embedded(
            pl.concat([empty.select("text_hash", error="text"), *self.texts]),
            np.concatenate([np.zeros((0, self.dim), np.float32), *self.vectors]),
            self.rows().drop("empty", "error"),
            pl.concat([empty.drop("text"), *self.passages]),
        )


class _Writer:
    """The writing thread of a worker, which runs one task at a time, in order of submission."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="entityframes-write")
        self._last: Future[Any] | None = None
        self._written: tuple[pl.DataFrame, pl.DataFrame] | None = None

    def submit(self, task: Callable[..., Any], *arguments: Any) -> None:
        """Wait for the previous task, raise its exception if it failed, and start the next one."""
        self.wait()
        self._last = self._thread.submit(task, *arguments)

    def write(self, task: Callable[..., Any], job: Job, buffer: _Buffer, end: JobEnd) -> None:
        """Submit a task that writes a buffer; `has` and `has_texts` report what it contains meanwhile."""
        self.submit(task, job, buffer, end)
        texts = [part.select("text_hash") for part in buffer.texts]
        self._written = buffer.rows().select(KEY), pl.concat([_NO_TEXTS, *texts])

    def has(self, rows: pl.DataFrame) -> bool:
        """Whether one of these entities may currently be written."""
        return self._written is not None and not rows.join(self._written[0], on=KEY, how="semi").is_empty()

    def has_texts(self, passages: pl.DataFrame) -> bool:
        """Whether the vector of one of these passages may currently be written."""
        return self._written is not None and not passages.join(self._written[1], on="text_hash", how="semi").is_empty()

    def wait(self) -> None:
        """Wait for the last task, and raise its exception if it failed."""
        last, self._last, self._written = self._last, None, None
        if last is not None:
            last.result()

    def close(self) -> None:
        self._thread.shutdown()


class EmbedRun:
    """One call of `embed`, whose threads process the jobs of a space until none is left."""

    def __init__(
        self, engine: Engine, embedder: Embedder, space: str, options: EmbedOptions, passages: Passages | None = None
    ) -> None:
        self._engine = engine
        self._embedder = embedder
        self._space = space
        self._passages = passages
        self._titled = passages is not None and bool(passages.title_fields)
        self._options = options
        self._interrupt = Interrupt()
        #: Set to end the run after the batch in flight.
        self._stopping = threading.Event()
        self._calls = Calls(embedder, options.max_attempts, self._stopping, self._delayed)
        self._batch = max(1, min(options.batch_size or embedder.max_batch, embedder.max_batch))
        self._log = OutcomeLog(EMBED_STATUSES)
        self._logging = threading.Lock()
        self._rows = 0
        #: The entities whose texts the embedder has returned, of which some are not written yet.
        self._embedded = 0
        self._batches = 0
        self._waiting = 0
        self._held: dict[str, Job] = {}
        #: The jobs whose vectors are being written.
        self._writing: set[str] = set()
        self._fatal: BaseException | None = None
        self._started = time.perf_counter()

    def result(self) -> EmbedResult:
        """The result so far."""
        with self._logging:
            counts = dict(self._log.counts)
        elapsed = time.perf_counter() - self._started
        remaining = Remaining(self._engine, self._space)
        return EmbedResult(
            counts,
            self._batches,
            elapsed,
            self._log,
            self._space,
            self._calls.count,
            self._waiting,
            remaining.in_no_job,
        )

    def execute(self, reporter: Reporter, cancel: threading.Event | None) -> None:
        """Process jobs until none is left in the space; `result` stays correct even if this raises.

        Raises:
            KeyboardInterrupt: on Ctrl-C; jobs that are not finished are released.
            EmbedderError: the embedder cannot embed any text.
            DatabaseError: the database failed.
        """
        reporter.track(self._log.counts)
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
            reported = 0
            while any(thread.is_alive() for thread in threads):
                threads[0].join(0.05) if threads[0].is_alive() else time.sleep(0.05)
                if cancel is not None and cancel.is_set():
                    self._stopping.set()
                reported = self._report(reporter, reported)
                if time.monotonic() - renewed > self._options.lease / 3:
                    self._renew()
                    renewed = time.monotonic()
            self._report(reporter, reported)
        except BaseException:
            if not self._interrupt.forked:
                self._abort(threads)
            raise
        if self._fatal is not None:
            raise self._fatal
        self._waiting = Remaining(self._engine, self._space).waiting(stopped=self._stopping.is_set())
        result = self.result()
        if not result.rows and _logger.isEnabledFor(logging.INFO):
            _logger.info("%r", result)

    # The run, in the caller's thread.

    def _report(self, reporter: Reporter, reported: int) -> int:
        done = max(self._rows, self._embedded)
        if done > reported:
            reporter.advance(done - reported)
        return done

    def _renew(self) -> None:
        for job in list(self._held.values()):
            try:
                self._engine.embedding.move(job, JobEnd("running", lease=self._options.lease))
            except TransientError:
                continue

    def _abort(self, threads: list[threading.Thread]) -> None:
        """Cancel the statements in flight and release the jobs, including those of threads that do not end."""
        self._stopping.set()
        began = time.monotonic()
        while any(thread.is_alive() for thread in threads):
            if time.monotonic() - began > (ABORT_WRITE_SECONDS if self._writing else ABORT_SECONDS):
                break
            self._interrupt.fire()
            time.sleep(0.02)
        for job in list(self._held.values()):
            self._release(job)

    def _release(self, job: Job, state: str = "pending", error: str | None = None) -> None:
        self._held.pop(job.job_id, None)
        try:
            self._engine.embedding.move(job, JobEnd(state, error))
        except DatabaseError:
            # The lease will expire.
            return

    # A worker: the embedding thread.

    def _work(self) -> None:
        process = process_name()
        worker = Worker(f"{process}{next(_numbers)}", process, self._options.lease)
        writer = _Writer()
        try:
            idle = processed = 0
            while not self._stopping.is_set() and processed != self._options.jobs:
                job = self._claimed(worker)
                if job is not None:
                    idle = 0
                    processed += 1
                    self._process(job, writer)
                    continue
                writer.wait()
                if self._options.jobs is not None or not self._engine.embedding.open_jobs(self._space):
                    break
                # Other workers hold jobs: wait until these are finished, or until the leases expire.
                self._stopping.wait(min(POLL[0] * 2**idle, POLL[1]))
                idle += 1
            writer.wait()
        except BaseException as error:
            self._fatal = self._fatal or error
            self._stopping.set()
        finally:
            writer.close()

    def _claimed(self, worker: Worker) -> Job | None:
        job: Job | None = self._retried(lambda: self._engine.embedding.claim(self._space, worker))
        if job is not None:
            self._held[job.job_id] = job
            if job.taken_over:
                _logger.info(
                    "job %s of space %s is taken over from a worker whose lease ran out", job.job_id, job.space
                )
        return job

    def _retried(self, call: Callable[[], T]) -> T:
        """Call the database, with retries after transient errors, until the run is stopped."""
        return retry(call, pauses=RESUME_PAUSES, wait=self._stopping.wait, what=f"embedding into space {self._space}")

    def _process(self, job: Job, writer: _Writer) -> None:
        """Embed the due entities of a job, submit them for writing, and finish or release the job."""
        try:
            rows = self._members(job)
            if writer.has(rows):
                # Some of these entities are also in the previous job, whose vectors are still being written.
                writer.wait()
                rows = self._members(job)
            if rows.is_empty():
                self._retried(lambda: self._engine.embedding.move(job, JobEnd("done")))
                self._held.pop(job.job_id, None)
            else:
                self._embed(job, rows, writer)
        except BaseException as error:
            if self._interrupt.forked:
                raise
            with suppress(DatabaseError):
                # Vectors that were embedded before the error are still written.
                writer.wait()
            self._release(job, error=str(error)[:500])
            raise

    def _members(self, job: Job) -> pl.DataFrame:
        """The entities of a job that are due, numbered."""

        def read() -> pl.DataFrame:
            return self._engine.embedding.members(job, self._titled)

        rows = self._retried(read).with_row_index("row")
        return rows if self._titled else rows.with_columns(metadata_hash=pl.lit(None, pl.Binary))

    def _embed(self, job: Job, rows: pl.DataFrame, writer: _Writer) -> None:
        """Embed the rows part by part; what was embedded before an error is still written."""
        parts, buffer, submitted = _parts(rows), _Buffer(self._embedder.dim), [_NO_ENTITIES.select("row")]
        rest: dict[str, Any] = {"status": "cancelled"}

        def write(state: str) -> None:
            nonlocal buffer
            writer.write(self._write, job, buffer, JobEnd(state, lease=self._options.lease))
            submitted.append(buffer.rows().select("row"))
            buffer = _Buffer(self._embedder.dim)

        try:
            for number, entities in enumerate(parts, 1):
                self._check(job)
                part, done = self._part(entities, writer), 0
                self._add_complete(buffer, part, 0)
                for batch in part.missing.iter_slices(self._batch):
                    self._check(job)
                    vectors, errors = self._calls.embed(batch["text"].to_list())
                    texts = batch.select("text_hash", error=pl.Series(errors, dtype=pl.String))
                    buffer.add(texts, vectors)
                    part.add_errors(texts)
                    done += batch.height
                    self._add_complete(buffer, part, done)
                    if done < part.missing.height and buffer.is_full(self._engine.embedding.write_bytes):
                        write("running")
                write("done" if number == len(parts) else "running")
        except (StoppedError, EmbedderError) as error:
            if not buffer.is_empty:
                write("running")
            if isinstance(error, StoppedError):
                writer.submit(self._release, job)
                return
            if not isinstance(error, EmbedderBusyError):
                raise
            # All attempts failed because the embedder was busy. The entities stay due.
            rest = {"status": "failed", "error_kind": "embedder", "error": str(error)}
            tried = replace(job, attempts=job.attempts + self._options.max_attempts)
            writer.submit(self._release, tried, "failed", str(error)[:500])
        except LeaseLostError:
            rest = LOST
        finally:
            # In a child that an embedder has forked, Polars would wait for its threads forever.
            if not self._interrupt.forked:
                left = rows.join(pl.concat(submitted), on="row", how="anti", maintain_order="left")
                self._log_rows(job, left, **rest)

    def _check(self, job: Job) -> None:
        """Check that the run is not stopped, and that this worker still holds the job."""
        if self._stopping.is_set():
            raise StoppedError
        if job.job_id not in self._held:
            raise LeaseLostError

    def _part(self, entities: pl.DataFrame, writer: _Writer) -> _Part:
        """Cut entities, and look up which of their texts have a vector."""
        passages = cut(entities, self._passages)
        if writer.has_texts(passages):
            writer.wait()
        hashes = passages["text_hash"].drop_nulls().unique()
        embedded = self._retried(lambda: self._engine.embedding.embedded(self._space, hashes))
        return _Part(entities.drop("content", "metadata"), passages, embedded)

    def _add_complete(self, buffer: _Buffer, part: _Part, embedded: int) -> None:
        entities, passages = part.complete(embedded)
        buffer.add_complete(entities, passages)
        with self._logging:
            self._embedded += entities.height

    # A worker: the writing thread.

    def _write(self, job: Job, buffer: _Buffer, end: JobEnd) -> None:
        """Write vectors, except for entities whose content has changed, and log the outcome of each row."""
        self._writing.add(job.job_id)
        try:
            self._write_and_log(job, buffer, end)
        finally:
            self._writing.discard(job.job_id)

    def _write_and_log(self, job: Job, buffer: _Buffer, end: JobEnd) -> None:
        rows = buffer.rows()
        try:
            written = self._written(job, buffer.embedded(), end)
        except LeaseLostError:
            # The worker that holds the job now processes it, unless this run has released it because of Ctrl-C.
            released = self._held.pop(job.job_id, None) is None
            self._log_rows(job, rows, **({"status": "cancelled"} if released else LOST))
            return
        except VectorsGoneError:
            self._release(job)
            self._log_rows(job, rows, **GONE)
            return
        except BaseException as error:
            self._log_rows(job, rows, status="cancelled")
            self._release(job, error=str(error)[:500])
            raise
        if end.state == "done":
            self._held.pop(job.job_id, None)
        joined = rows.join(written.with_columns(written=True), on=KEY, how="left", maintain_order="left")
        current, rejected = pl.col("written").is_not_null(), pl.col("error").is_not_null()
        status = (
            pl.when(~current | pl.col("empty"))
            .then(pl.lit("skipped"))
            .when(rejected)
            .then(pl.lit("failed"))
            .otherwise(pl.lit("embedded"))
        )
        reason = pl.when(current & pl.col("empty")).then(pl.lit(EMPTY)).otherwise("error")
        kind = pl.when(current & rejected).then(pl.lit("embedder"))
        joined = joined.with_columns(error=reason)
        self._log_rows(job, joined, batches=1, status=status, error_kind=kind)

    def _written(self, job: Job, embedded: Embedded, end: JobEnd) -> pl.DataFrame:
        """The keys of the entities that were written."""
        tried = False

        def write() -> pl.DataFrame:
            nonlocal tried
            try:
                return self._engine.embedding.write_vectors(job, embedded, end, self._interrupt)
            except LeaseLostError:
                if not tried:
                    raise
                # The previous attempt may have been committed although the connection was lost.
                return self._stored(job, embedded.entities)
            finally:
                tried = True

        written: pl.DataFrame = self._retried(write)
        return written

    def _stored(self, job: Job, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows whose current content has a vector in the store."""
        there = self._engine.lookup(rows.select(KEY))
        same = there.filter(pl.col("content_hash") == rows["content_hash"].bin.encode("hex").gather(there["position"]))
        due = self._engine.embedding.members(job, False).select(KEY)
        return rows[same["position"]].select(KEY).join(due, on=KEY, how="anti")

    def _log_rows(self, job: Job, rows: pl.DataFrame, batches: int = 0, **columns: Any) -> None:
        with self._logging:
            numbered = rows.drop("row").with_row_index("row", self._rows)
            self._rows += rows.height
            self._batches += batches
            self._log.append(outcomes(numbered, outcome_schema(EMBED_STATUSES), job_id=job.job_id, **columns))

    def _delayed(self, error: str, attempts: int) -> None:
        """Record why the embedder is busy in the jobs that are held, and renew their leases."""
        self._options.delayed(error)
        for job in list(self._held.values()):
            waiting = replace(job, attempts=job.attempts + attempts)
            try:
                self._engine.embedding.move(waiting, JobEnd("running", error[:500], self._options.lease))
            except DatabaseError:
                continue


def _parts(rows: pl.DataFrame) -> list[pl.DataFrame]:
    """Rows in parts of about `CUT_BYTES` of content."""
    bytes_so_far = rows["content"].str.len_bytes().cast(pl.Int64).cum_sum()
    lengths = ((bytes_so_far - 1) // CUT_BYTES).rle().struct.field("len").to_list()
    ends = list(itertools.accumulate(lengths))
    return [rows[end - length : end] for length, end in zip(lengths, ends, strict=True)]
