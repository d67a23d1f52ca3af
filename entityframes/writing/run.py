"""Runs the batches of one call in threads and collects exactly one outcome for each row."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Protocol

import polars as pl

from entityframes.engines.batch import random_id
from entityframes.engines.database import Recorder
from entityframes.errors import ConnectionLostError, EntityFramesError
from entityframes.interrupt import CtrlC, Interrupt
from entityframes.progress import Reporter
from entityframes.threads import Submit
from entityframes.writing.confirm import check_replicated, confirm
from entityframes.writing.outcomes import Outcomes

#: Seconds between two checks for Ctrl-C and for the caller's cancel event.
_POLL_SECONDS = 0.05


class Batches(Protocol):
    """The rows of a call, split into batches."""

    #: The error that ended the input, if any.
    error: Exception | None
    #: Rows that were read but do not belong to a started batch.
    remaining: list[pl.DataFrame]
    #: Whether all rows have been read.
    read: bool

    def __iter__(self) -> Iterator[pl.DataFrame]:
        """The batches; each is the first of `remaining`, until the run has started it and removes it there."""


class Run:
    """The run of one call that writes.

    Args:
        engine: the engine of the store, or of tables.
        interrupt: stops the run.
        outcomes: builds the outcomes of the rows.
        concurrency: how many batches are processed concurrently; None for the default of the engine.
        run_id: the id of the call that the run is a part of; None for one of its own.
        new_id: makes the ids of its batches.
    """

    def __init__(
        self,
        engine: Recorder,
        interrupt: Interrupt,
        outcomes: Outcomes,
        *,
        concurrency: int | None = None,
        run_id: str | None = None,
        new_id: Callable[[], str] = random_id,
    ) -> None:
        self.run_id = run_id or str(uuid.uuid4())
        self.new_id = new_id
        self.interrupt = interrupt
        self.outcomes = outcomes
        self.log = outcomes.log()
        self.log.run_id = self.run_id
        #: Number of batches so far.
        self.batches = 0
        #: Whether the input was not read to its end.
        self.unread = False
        self._engine, self._concurrency = engine, concurrency or engine.database.workers
        self._started, self._losses = time.perf_counter(), engine.database.losses
        self._ctrl_c = CtrlC()
        #: The batches that are being processed, with their rows.
        self._in_flight: dict[Future[pl.DataFrame], pl.DataFrame] = {}
        #: The error that ends the run, and whether the server is unreachable. Either prevents further batches.
        self._fatal: BaseException | None = None
        self._server_unreachable = False

    @property
    def elapsed(self) -> float:
        """Seconds since the run was created."""
        return time.perf_counter() - self._started

    @property
    def stopping(self) -> bool:
        """Whether no further batch should start."""
        return self.interrupt.requested or self._server_unreachable or self._fatal is not None

    @property
    def lost_connection(self) -> bool:
        """Whether a connection was lost during the run, so that another server may have taken over."""
        return self._engine.database.losses != self._losses

    def abort(self, error: BaseException) -> None:
        """Start no further batch; `execute` raises the first error given here."""
        self._fatal = self._fatal or error

    def batch_failed(self, error: EntityFramesError, *, fatal: bool) -> None:
        """Record that a batch failed; a fatal error ends the run."""
        if fatal:
            self.abort(error)
        if isinstance(error, ConnectionLostError):
            # Each further batch would wait for the same server. The batches in flight continue their own retries.
            self._server_unreachable = True

    def execute(
        self,
        batches: Batches,
        work: Callable[[pl.DataFrame], pl.DataFrame],
        reporter: Reporter,
        submit: Submit,
        *,
        disjoint: Callable[[pl.DataFrame, pl.DataFrame], bool] | None = None,
        raise_if_lost: bool = False,
    ) -> None:
        """Process the batches in threads. `log` is complete even if an exception is raised.

        Args:
            batches: the rows.
            work: processes a batch and returns the outcomes of its rows.
            reporter: reports progress after each batch.
            submit: submits work to a thread.
            disjoint: whether two batches have no key in common. Batches that share a key are not processed
                concurrently, so that the later row wins. None if all batches are disjoint.
            raise_if_lost: whether to raise an error if committed rows were lost in a failover.

        Raises:
            KeyboardInterrupt: on Ctrl-C, after the batches in flight were rolled back.
            EntityFramesError: the error given to `abort`, or the one that ended the input.
        """
        reporter.track(self.log.counts)
        with self._ctrl_c:
            try:
                for batch in self._ctrl_c.let_through(batches):
                    self._wait_for_slot(batch, reporter, disjoint)
                    if self.stopping:
                        break
                    self._start(batches, batch, work, submit)
                while self._in_flight:
                    self._collect(reporter)
            except BaseException:
                if self.interrupt.forked:
                    raise
                self._cancel()
                raise
            finally:
                if not self.interrupt.forked:
                    self.unread = not batches.read
                    for rows in batches.remaining:
                        self.log.append(self.outcomes.unprocessed(rows))
                self._confirm(raise_if_lost)
        if error := self._fatal or batches.error:
            raise error

    def _wait_for_slot(
        self, batch: pl.DataFrame, reporter: Reporter, disjoint: Callable[[pl.DataFrame, pl.DataFrame], bool] | None
    ) -> None:
        """Wait until another batch may start and no batch in flight shares a key with this one."""
        while len(self._in_flight) >= self._concurrency or (
            disjoint is not None and not all(disjoint(batch, other) for other in self._in_flight.values())
        ):
            self._collect(reporter)

    def _start(
        self, batches: Batches, batch: pl.DataFrame, work: Callable[[pl.DataFrame], pl.DataFrame], submit: Submit
    ) -> None:
        # If `submit` raises ClosedError, the batch stays in `remaining`.
        self._in_flight[submit(work, batch)] = batch
        del batches.remaining[0]
        self.batches += 1

    def _collect(self, reporter: Reporter) -> None:
        """Wait for batches to finish and log them; returns regularly, to check for Ctrl-C and the cancel event."""
        self._ctrl_c.check()
        done, _ = wait(self._in_flight, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
        if self.interrupt.requested:
            self.interrupt.fire()
        for future in done:
            rows = self._log_batch(future)
            future.result()
            reporter.advance(rows)

    def _cancel(self) -> None:
        """Cancel the batches in flight and log their outcomes."""
        self.interrupt.fire()
        while self._in_flight:
            done, _ = wait(self._in_flight, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            if not done:
                self.interrupt.fire()
            for future in done:
                self._log_batch(future)

    def _log_batch(self, future: Future[pl.DataFrame]) -> int:
        """Log the outcomes of a finished batch, even if it raised an unexpected error; return its number of rows."""
        batch = self._in_flight.pop(future)
        error = future.exception()
        if error is None:
            self.log.append(future.result())
        else:
            # Errors of this package that propagate are raised before the transaction; others may be raised anywhere.
            not_written = isinstance(error, EntityFramesError)
            self.log.append(self.outcomes.unprocessed(batch, "cancelled" if not_written else "unknown"))
        return batch.height

    def _confirm(self, raise_if_lost: bool) -> None:
        """After a lost connection, check that the server still has the rows that this run committed."""

        def check_ctrl_c() -> None:
            if self._ctrl_c.pressed:
                self.interrupt.fire()

        lost = confirm(self._engine, self.log, self._losses, self.interrupt, check_ctrl_c)
        check_replicated(self._engine, self.log, self.elapsed, self.interrupt)
        if lost and raise_if_lost:
            self.abort(ConnectionLostError(f"{lost:,} rows were committed, but may have been lost in a failover"))
