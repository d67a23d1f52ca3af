"""What the main thread has to wait for is done in another one, so that Ctrl-C stays the program's own.

In the main thread the driver takes SIGINT for itself while it works. It loses one that comes as the work ends, so that
no handler ever hears of it, and at times it cancels what is not there any more, which ends the process.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

import adbc_driver_manager

from entityframes.interrupt import CtrlC

T = TypeVar("T")

#: Seconds after which what was stopped is cancelled again, and, on Windows, where locks do not, signals are noticed.
LOOK_AFTER = 0.1


class _Work:
    """One call, and what comes of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call: Callable[[], Any] | None = call
        self.ended = False
        self._running = threading.Lock()
        self._running.acquire()
        self.value: Any = None
        self.error: BaseException | None = None

    def do(self) -> None:
        """Make the call, once."""
        call, self._call = self._call, None
        if call is None:
            return
        try:
            self.value = call()
        except BaseException as error:
            self.error = error
        self.ended = True
        self._running.release()

    def wait(self, seconds: float) -> None:
        self._running.acquire(timeout=seconds)


class _Helper:
    """A thread that does one thing after another; kept, because starting one takes longer than a short statement."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._given: SimpleQueue[_Work] = SimpleQueue()
        threading.Thread(target=self._work, name="entityframes-aside", daemon=True).start()

    def give(self, work: _Work) -> None:
        self._given.put(work)

    def _work(self) -> None:
        while True:
            self._given.get().do()


#: Helpers that have nothing to do: one, unless a signal handler has used a store while a call was at work.
_idle: list[_Helper] = []


def aside(call: Callable[[], T], cancel: Callable[[], None]) -> T:
    """What a call returns or raises; while the main thread waits for it, the program's signal handlers run.

    Args:
        call: what may wait for a server.
        cancel: has it end soon. Called when a signal handler raises, as Ctrl-C does by default: what that raises is
            raised when the call has ended. Called, too, when a Ctrl-C comes that is held back.

    Raises:
        KeyboardInterrupt: the call was cancelled for a Ctrl-C that is held back.
    """
    if threading.current_thread() is not threading.main_thread() or sys.is_finalizing():
        return call()
    helper = _idle.pop() if _idle else None
    if helper is None or helper.process != os.getpid():
        helper = _Helper()
    work = _Work(call)
    given = False
    stopped: BaseException | None = None
    held_before = CtrlC.is_deferred()
    while not work.ended:
        try:
            if not given:
                # Twice, where a signal comes before that is noted; it is done once.
                helper.give(work)
                given = True
            if stopped is not None or (CtrlC.is_deferred() and not held_before):
                with suppress(adbc_driver_manager.Error):
                    cancel()
            work.wait(LOOK_AFTER)
        except BaseException as error:
            stopped = error
    _idle.append(helper)
    if stopped is not None:
        raise stopped
    if work.error is None:
        value: T = work.value
        return value
    cancelled = getattr(work.error, "sqlstate", None) == "57014"
    try:
        if cancelled and CtrlC.is_deferred() and not held_before:
            raise KeyboardInterrupt from work.error
        raise work.error
    finally:
        # The error keeps this frame, which would keep the error.
        del work
