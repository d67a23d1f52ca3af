"""Stopping a run: a flag that its batches check, and the cancellation of statements in flight."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any, ClassVar, TypeVar

from entityframes.errors import StatementCancelledError

T = TypeVar("T")

#: Seconds after which a second Ctrl-C is no longer deferred.
DEFER_SECONDS = 3.0
#: The interval, in seconds, at which the event of a caller is checked during a single statement.
_WATCH_SECONDS = 0.05
#: Seconds for which a COMMIT is not cancelled: cancelling one that waits for a standby makes it succeed without the
#: standby.
COMMIT_SECONDS = 1.0


class Interrupt:
    """Stops the batches of a run, including those that wait for the database.

    Args:
        cancel: an event of the caller that also stops the run when it is set.
    """

    def __init__(self, cancel: threading.Event | None = None) -> None:
        self._process = os.getpid()
        self._cancel = cancel
        self._fired = threading.Event()
        self._lock = threading.Lock()
        self._in_flight: set[Callable[[], None]] = set()
        self._committing: set[Callable[[], None]] = set()
        #: When `fire` was first called, by the monotonic clock.
        self.fired_at: float | None = None

    @property
    def requested(self) -> bool:
        """Whether the run should stop."""
        return self._fired.is_set() or (self._cancel is not None and self._cancel.is_set())

    @property
    def forked(self) -> bool:
        """Whether this process was forked during the run; it has none of the running threads."""
        return self._process != os.getpid()

    def fire(self) -> None:
        """Stop the run: set the flag and cancel its statements in flight. May be called repeatedly."""
        self.fired_at = self.fired_at or time.monotonic()
        self._fired.set()
        with self._lock:
            for cancel in self._in_flight:
                if cancel not in self._committing or time.monotonic() - self.fired_at > COMMIT_SECONDS:
                    cancel()

    def check(self) -> None:
        """Raise if the run should stop.

        Raises:
            StatementCancelledError: the run was stopped.
        """
        if self.requested:
            raise StatementCancelledError("the run was stopped")

    @contextmanager
    def uncancelled(self) -> Iterator[None]:
        """Make `fire` wait until this context ends, without cancelling anything.

        Raises:
            StatementCancelledError: the run was stopped before.
        """
        with self._lock:
            self.check()
            yield

    def wait(self, seconds: float) -> None:
        """Sleep, at most until the run is stopped."""
        self._fired.wait(seconds)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within this context the event of the caller cancels a statement in flight, too, while this thread waits."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(_WATCH_SECONDS):
                if self.requested:
                    self.fire()

        thread = threading.Thread(target=watch, name="entityframes-cancel", daemon=True)
        if self._cancel is not None:
            thread.start()
        try:
            yield
        finally:
            ended.set()

    def cancelling(self, cancel: Callable[[], None]) -> AbstractContextManager[None]:
        """Within this context `fire` calls `cancel`, which must end the statement in flight and may be called late."""
        return self._while_in(self._in_flight, cancel)

    def committing(self, cancel: Callable[[], None]) -> AbstractContextManager[None]:
        """Within this context `fire` delays its call of `cancel`, the function that was passed to `cancelling`."""
        return self._while_in(self._committing, cancel)

    @contextmanager
    def _while_in(self, calls: set[Callable[[], None]], cancel: Callable[[], None]) -> Iterator[None]:
        with self._lock:
            calls.add(cancel)
        try:
            yield
        finally:
            with self._lock:
                calls.discard(cancel)


def sigint_handler() -> Any:
    """Return Python's handler for SIGINT, and reinstall it if it ignores the signal.

    Polars installs its own handler on import, which would interrupt a call in a background job that ignores SIGINT.
    """
    handler = signal.getsignal(signal.SIGINT)
    if handler in (signal.SIG_IGN, signal.SIG_DFL) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)
    return handler


class CtrlC:
    """Defers Ctrl-C, so that it never occurs between the write of a batch and the recording of its outcome.

    Python raises KeyboardInterrupt after any bytecode of the main thread. Within this context it is delivered, to the
    handler that was installed before, when `check` is called, while `let_through` waits for an item, or at the end.
    """

    #: The active context that defers Ctrl-C.
    _current: ClassVar[CtrlC | None] = None

    def __enter__(self) -> CtrlC:
        self._pressed: tuple[int, FrameType | None] | None = None
        self._pressed_at = float("inf")
        self._through = False
        self._before = sigint_handler()
        # Python runs signal handlers in the main thread, and only handlers that were installed from Python.
        self._held = callable(self._before) and threading.current_thread() is threading.main_thread()
        if self._held:
            self._outer, CtrlC._current = CtrlC._current, self
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._held:
            signal.signal(signal.SIGINT, self._before)
            CtrlC._current = self._outer
        if not isinstance(error, KeyboardInterrupt):
            self.check()

    def check(self) -> None:
        """Deliver a deferred Ctrl-C.

        Raises:
            KeyboardInterrupt: a Ctrl-C was deferred, and the handler raises this, as Python's default handler does.
        """
        if self._pressed is not None:
            pressed, self._pressed = self._pressed, None
            self._deliver(*pressed)

    @classmethod
    def is_deferred(cls) -> bool:
        """Whether a deferred Ctrl-C is pending in the main thread."""
        return cls._current is not None and cls._current.pressed

    @property
    def pressed(self) -> bool:
        """Whether a deferred Ctrl-C is pending."""
        return self._pressed is not None

    def let_through(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; while the next one is awaited, Ctrl-C is delivered immediately."""
        following = iter(items)
        while True:
            self._through = True
            try:
                self.check()
                item = next(following)
            except StopIteration:
                return
            finally:
                self._through = False
            yield item

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._through or time.monotonic() - self._pressed_at > DEFER_SECONDS:
            self._deliver(number, frame)
        elif self._pressed is None:
            self._pressed = (number, frame)
            self._pressed_at = min(self._pressed_at, time.monotonic())

    def _deliver(self, number: int, frame: FrameType | None) -> None:
        assert callable(self._before)
        self._before(number, frame)
