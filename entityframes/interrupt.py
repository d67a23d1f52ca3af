"""Stopping a run: one flag that its batches look at, and the statements in flight that it ends."""

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

#: Seconds after which a second Ctrl-C is not held back.
PATIENCE = 3.0
#: Seconds for which a COMMIT is not cancelled: where it waits for a standby it would succeed without that.
COMMIT_SECONDS = 1.0


class Interrupt:
    """Asks the batches of a run to stop, also those that wait for the database.

    Args:
        cancel: an event of the caller's that stops the run as well when it is set.
    """

    def __init__(self, cancel: threading.Event | None = None) -> None:
        self._process = os.getpid()
        self._cancel = cancel
        self._fired = threading.Event()
        self._lock = threading.Lock()
        self._in_flight: set[Callable[[], None]] = set()
        self._committing: set[Callable[[], None]] = set()
        #: When it was fired first, by the monotonic clock.
        self.fired_at: float | None = None

    @property
    def requested(self) -> bool:
        """Whether the run is to stop."""
        return self._fired.is_set() or (self._cancel is not None and self._cancel.is_set())

    @property
    def forked(self) -> bool:
        """Whether this is a child that was forked in the middle of the run: it has none of the threads at work."""
        return self._process != os.getpid()

    def fire(self) -> None:
        """Stop the run: set the flag and cancel what the database is doing for it. May be called again."""
        self.fired_at = self.fired_at or time.monotonic()
        self._fired.set()
        with self._lock:
            for cancel in self._in_flight:
                if cancel not in self._committing or time.monotonic() - self.fired_at > COMMIT_SECONDS:
                    cancel()

    def check(self) -> None:
        """Raise if the run is to stop.

        Raises:
            StatementCancelledError: it is.
        """
        if self.requested:
            raise StatementCancelledError("the run was stopped")

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """While inside, `fire` cancels nothing and waits; raises as `check` does if it came before."""
        with self._lock:
            self.check()
            yield

    def wait(self, seconds: float) -> None:
        """Sleep, at most until the run is stopped."""
        self._fired.wait(seconds)

    def cancelling(self, cancel: Callable[[], None]) -> AbstractContextManager[None]:
        """While inside, `fire` calls `cancel`, which has to end the statement in flight and may be called late."""
        return self._while_in(self._in_flight, cancel)

    def committing(self, cancel: Callable[[], None]) -> AbstractContextManager[None]:
        """While inside, `fire` calls `cancel`, which is that of `cancelling`, not at once."""
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


def handler_of_ctrl_c() -> Any:
    """What Python has set for SIGINT, put in place again where it is to be ignored.

    Polars takes the signal over when it is imported, and would end a call of a background job, which ignores it.
    """
    handler = signal.getsignal(signal.SIGINT)
    if handler in (signal.SIG_IGN, signal.SIG_DFL) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)
    return handler


class CtrlC:
    """Holds Ctrl-C back, so that it never falls between what a batch did and the account of it.

    Python raises KeyboardInterrupt after any bytecode of the main thread. In here it is delivered, to whatever handler
    was set, where `check` is called, while `let_through` waits for an item, or at the end.
    """

    #: The one that holds Ctrl-C back now.
    _current: ClassVar[CtrlC | None] = None

    def __enter__(self) -> CtrlC:
        self._pressed: tuple[int, FrameType | None] | None = None
        self._pressed_at = float("inf")
        self._through = False
        self._before = handler_of_ctrl_c()
        # Signals go to the main thread, and only to handlers that are Python's.
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
        """Deliver a Ctrl-C that was held back.

        Raises:
            KeyboardInterrupt: there was one, and the handler raises it, as Python's own does.
        """
        if self._pressed is not None:
            pressed, self._pressed = self._pressed, None
            self._deliver(*pressed)

    @classmethod
    def is_held_back(cls) -> bool:
        """Whether a Ctrl-C waits to be delivered in the main thread."""
        return cls._current is not None and cls._current.pressed

    @property
    def pressed(self) -> bool:
        """Whether a Ctrl-C is held back."""
        return self._pressed is not None

    def let_through(self, items: Iterable[T]) -> Iterator[T]:
        """The items; Ctrl-C is delivered at once while the next one is awaited."""
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
        if self._through or time.monotonic() - self._pressed_at > PATIENCE:
            self._deliver(number, frame)
        elif self._pressed is None:
            self._pressed = (number, frame)
            self._pressed_at = min(self._pressed_at, time.monotonic())

    def _deliver(self, number: int, frame: FrameType | None) -> None:
        assert callable(self._before)
        self._before(number, frame)
