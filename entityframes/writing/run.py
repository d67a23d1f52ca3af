"""The batches of one call: submitted to threads, collected, stopped, so that each row ends in exactly one outcome."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Protocol

import polars as pl

from entityframes.engines.base import Engine
from entityframes.errors import ConnectionLostError, EntityFramesError
from entityframes.interrupt import CtrlC, Interrupt
from entityframes.progress import Reporter
from entityframes.threads import Submit
from entityframes.writing.confirm import check_replicated, confirm
from entityframes.writing.outcomes import Outcomes

#: Seconds between two looks at Ctrl-C and at the caller's cancel event.
_LOOK_AFTER = 0.05


class Batches(Protocol):
    """The rows of a call, cut into batches."""

    #: Why there are no more.
    error: Exception | None
    #: Rows that were read and are in no batch that was begun.
    left: list[pl.DataFrame]

    def __iter__(self) -> Iterator[pl.DataFrame]:
        """The batches; each stays in `left` until `begun` is called."""

    def begun(self) -> None:
        """The batch that was handed out last is being worked on."""


class Run:
    """One call that writes.

    Args:
        engine: the store's.
        interrupt: stops it.
        outcomes: makes the outcomes of its rows.
        at_once: how many batches are worked on at once; None: as many as the engine likes.
    """

    def __init__(
        self,
        engine: Engine,
        interrupt: Interrupt,
        outcomes: Outcomes,
        *,
        at_once: int | None = None,
    ) -> None:
        self.run_id = str(uuid.uuid4())
        self.interrupt = interrupt
        self.outcomes = outcomes
        self.log = outcomes.log()
        #: How many transactions it had.
        self.batches = 0
        self._engine, self._at_once = engine, at_once or engine.workers
        self._started, self._losses = time.perf_counter(), engine.losses
        self._ctrl_c = CtrlC()
        #: Batches that threads work on, with their rows.
        self._working: dict[Future[pl.DataFrame], pl.DataFrame] = {}
        #: Why the run cannot go on, and whether the server cannot be reached, so that no other batch is begun.
        self._fatal: BaseException | None = None
        self._server_away = False

    @property
    def elapsed(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._started

    @property
    def stopping(self) -> bool:
        """Whether no further batch is to begin."""
        return self.interrupt.requested or self._server_away or self._fatal is not None

    @property
    def lost_connection(self) -> bool:
        """Whether a connection was lost since it was made: perhaps another server answers now."""
        return self._engine.losses != self._losses

    def end(self, error: BaseException) -> None:
        """Let no further batch begin, because of this; the first one is what `execute` raises."""
        self._fatal = self._fatal or error

    def failed(self, error: EntityFramesError, *, ends: bool) -> None:
        """Take note that a batch failed, and whether that ends the run."""
        if ends:
            self.end(error)
        if isinstance(error, ConnectionLostError):
            # Batches that follow would each wait for the same server; those in flight go on for themselves.
            self._server_away = True

    def execute(
        self,
        batches: Batches,
        work: Callable[[pl.DataFrame], pl.DataFrame],
        reporter: Reporter,
        submit: Submit,
        *,
        disjoint: Callable[[pl.DataFrame, pl.DataFrame], bool] | None = None,
        must_stay: bool = False,
    ) -> None:
        """Have the batches worked on, each by a thread; `log` stays right whatever is raised.

        Args:
            batches: the rows.
            work: makes the outcomes of a batch.
            reporter: is told of each batch that is done.
            submit: has a thread do some work.
            disjoint: whether two batches share no key; batches that do are not worked on at once, so that later rows
                win. None: no two of them do.
            must_stay: whether rows that were committed and are not stored any more are an error.

        Raises:
            KeyboardInterrupt: on Ctrl-C, after the batches in flight were rolled back.
            EntityFramesError: what `end` was given, or what ended the batches.
        """
        with self._ctrl_c:
            try:
                for batch in self._ctrl_c.let_through(batches):
                    self._make_room(batch, reporter, disjoint)
                    if self.stopping:
                        break
                    self._begin(batches, batch, work, submit)
                while self._working:
                    self._collect(reporter)
            except BaseException:
                if self.interrupt.forked:
                    raise
                self._stop()
                raise
            finally:
                if not self.interrupt.forked:
                    for rows in batches.left:
                        self.log.append(self.outcomes.unseen(rows))
                self._confirm(must_stay)
        if error := self._fatal or batches.error:
            raise error

    def _make_room(
        self, batch: pl.DataFrame, reporter: Reporter, disjoint: Callable[[pl.DataFrame, pl.DataFrame], bool] | None
    ) -> None:
        """Wait until a thread is free and no batch that is worked on holds a key of this one."""
        while len(self._working) >= self._at_once or (
            disjoint is not None and not all(disjoint(batch, other) for other in self._working.values())
        ):
            self._collect(reporter)

    def _begin(
        self, batches: Batches, batch: pl.DataFrame, work: Callable[[pl.DataFrame], pl.DataFrame], submit: Submit
    ) -> None:
        # A ClosedError leaves the batch in `left`.
        self._working[submit(work, batch)] = batch
        batches.begun()
        self.batches += 1

    def _collect(self, reporter: Reporter) -> None:
        """Log the batches that are done; wakes often enough for Ctrl-C and the caller's cancel event."""
        self._ctrl_c.check()
        done, _ = wait(self._working, timeout=_LOOK_AFTER, return_when=FIRST_COMPLETED)
        if self.interrupt.requested:
            self.interrupt.fire()
        for future in done:
            rows = self._log(future)
            future.result()
            reporter.advance(rows, self.log.counts)

    def _stop(self) -> None:
        """Cancel what is in flight and log what becomes of it."""
        self.interrupt.fire()
        while self._working:
            done, _ = wait(self._working, timeout=_LOOK_AFTER, return_when=FIRST_COMPLETED)
            if not done:
                self.interrupt.fire()
            for future in done:
                self._log(future)

    def _log(self, future: Future[pl.DataFrame]) -> int:
        """Log a batch that is done, also one that ended in an error that nobody expected."""
        batch = self._working.pop(future)
        error = future.exception()
        if error is None:
            self.log.append(future.result())
        else:
            # Errors of this package come from before the transaction; of others nobody knows.
            known = isinstance(error, EntityFramesError)
            self.log.append(self.outcomes.unseen(batch, "cancelled" if known else "unknown"))
        return batch.height

    def _confirm(self, must_stay: bool) -> None:
        """After a lost connection, make sure that the server still has what this run wrote."""

        def look() -> None:
            if self._ctrl_c.pressed:
                self.interrupt.fire()

        lost = confirm(self._engine, self.log, self._losses, self.interrupt, look)
        check_replicated(self._engine, self.log, self.elapsed, self.interrupt)
        if lost and must_stay:
            self.end(ConnectionLostError(f"{lost:,} rows were committed, and are not known to be stored any more"))
