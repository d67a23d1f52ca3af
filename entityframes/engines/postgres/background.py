"""Runs blocking calls of the driver in a helper thread, so that Ctrl-C is handled by the program.

In the main thread the driver installs its own handler for SIGINT during a call. That loses a signal that arrives as the
call ends, so no handler is ever called, and sometimes cancels a call that no longer exists, which crashes the process.
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

#: The interval in seconds at which a stopped call is cancelled again, and at which signals are noticed on Windows,
#: where waiting for a lock cannot be interrupted.
POLL_SECONDS = 0.1


class _Work:
    """A call and its result."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call: Callable[[], Any] | None = call
        self.ended = False
        self._running = threading.Lock()
        self._running.acquire()
        self.value: Any = None
        self.error: BaseException | None = None

    def do(self) -> None:
        """Run the call, if it has not been run yet."""
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
    """A thread that runs one call at a time. It is reused, because starting one takes longer than a short statement."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._given: SimpleQueue[_Work] = SimpleQueue()
        threading.Thread(target=self._work, name="entityframes-helper", daemon=True).start()

    def give(self, work: _Work) -> None:
        self._given.put(work)

    def _work(self) -> None:
        while True:
            self._given.get().do()


#: Idle helpers: at most one, unless a signal handler has used a store during a call.
_idle: list[_Helper] = []


def run_in_helper(call: Callable[[], T], cancel: Callable[[], None]) -> T:
    """Run a call in a helper thread; while the main thread waits for it, signal handlers of the program run.

    Args:
        call: a call that may block.
        cancel: cancels the call. It is called when a signal handler raises, as for Ctrl-C by default, whose exception
            is raised after the call has ended; and when a Ctrl-C is deferred.

    Raises:
        KeyboardInterrupt: the call was cancelled because of a deferred Ctrl-C.
    """
    if threading.current_thread() is not threading.main_thread() or sys.is_finalizing():
        return call()
    helper = _idle.pop() if _idle else None
    if helper is None or helper.process != os.getpid():
        helper = _Helper()
    work = _Work(call)
    given = False
    stopped: BaseException | None = None
    deferred_before = CtrlC.is_deferred()
    while not work.ended:
        try:
            if not given:
                # May be given twice, if a signal arrives before the next line; it is run only once.
                helper.give(work)
                given = True
            if stopped is not None or (CtrlC.is_deferred() and not deferred_before):
                with suppress(adbc_driver_manager.Error):
                    cancel()
            work.wait(POLL_SECONDS)
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
        if cancelled and CtrlC.is_deferred() and not deferred_before:
            # Without the error of the driver, which quotes the statement.
            raise KeyboardInterrupt
        raise work.error
    finally:
        # Break the reference cycle between the error and this frame.
        del work
