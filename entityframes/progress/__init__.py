"""Progress reporting: as a bar in notebooks and terminals, as lines in a log, or through a function of the caller."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import copy_context
from typing import Literal

from entityframes.errors import StatementCancelledError
from entityframes.progress.report import Report, State, View

#: None shows a bar in notebooks and terminals, and elsewhere lines in the log if the logger ``entityframes`` is enabled
#: for INFO. True always shows a bar, "log" always lines, False nothing. A callable receives the rows done and the total
#: (or None).
Progress = bool | Literal["log"] | Callable[[int, int | None], None] | None

#: Seconds before progress is shown; shorter calls show none.
DELAY = 0.5
#: Seconds for which the end of a call waits for its progress to be drawn.
_DRAWN_SECONDS = 2.0

_logger = logging.getLogger("entityframes")


class Reporter:
    """Reports the progress of one call; a context manager.

    A thread draws it, so that slow terminals and browsers do not slow the call, and the time advances while it waits.

    Args:
        progress: see `Progress`.
        total: the number of rows, or None; a function that counts them is called only if progress is reported.
        what: the name of the call.
        unit: the unit of the count.

    Raises:
        ValueError: `progress` has an unknown value.
    """

    def __init__(
        self,
        progress: Progress,
        total: int | Callable[[], int | None] | None = None,
        *,
        what: str,
        unit: str = "rows",
    ) -> None:
        self._callback = progress if callable(progress) else None
        self._view = _view(progress)
        if callable(total):
            total = total() if self._view or self._callback else None
        self._total, self._what, self._unit = total, what, unit
        self._done = 0
        self._counts: list[Mapping[str, int]] = []
        self._state: State = "running"
        self._started = time.monotonic()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    def advance(self, rows: int) -> None:
        """Report that `rows` more rows are done."""
        self._done += rows
        if self._callback is not None:
            self._callback(self._done, self._total)

    def track(self, counts: Mapping[str, int], *, alone: bool = False) -> None:
        """Show the numbers by status of a log, which go on changing.

        Args:
            counts: the numbers.
            alone: whether they replace those of other logs; otherwise they are added up.
        """
        self._counts = [counts] if alone else [*self._counts, counts]

    def expect(self, total: int | None) -> None:
        """Set the total, once it is known."""
        self._total = total

    def complete(self) -> None:
        """Report that all rows are done."""
        if self._total is not None and self._total > self._done:
            self.advance(self._total - self._done)

    def __enter__(self) -> Reporter:
        if self._view is not None:
            # In the context of the caller, by which a notebook knows the cell whose output it is.
            draw = copy_context().run
            self._thread = threading.Thread(target=draw, args=(self._draw,), name="entityframes-progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> Literal[False]:
        if self._thread is not None and self._process == os.getpid():
            self._state = self._end(error)
            self._ended.set()
            self._thread.join(_DRAWN_SECONDS)
        return False

    def _end(self, error: BaseException | None) -> State:
        stopped = isinstance(error, KeyboardInterrupt | StatementCancelledError)
        if stopped or (error is None and self._report().counts.get("cancelled")):
            return "interrupted"
        # A generator that is closed early has yielded all that was wanted.
        return "done" if error is None or isinstance(error, GeneratorExit) else "failed"

    def _report(self) -> Report:
        counts: Counter[str] = Counter()
        for each in self._counts:
            counts.update(each)
        shown = {status: count for status, count in counts.items() if count}
        seconds, done = time.monotonic() - self._started, self._done
        if shown and self._state in ("interrupted", "failed"):
            # Also the rows of batches that had not been reported when the call ended.
            done = sum(shown.values()) - shown.get("cancelled", 0)
        return Report(self._what, self._unit, done, self._total, shown, seconds, self._state)

    def _draw(self) -> None:
        """Show reports until the call ends; runs in a thread."""
        # Whatever a terminal or a notebook raises is no reason to fail, and nobody waits for an error of this thread.
        with suppress(Exception):
            self._ended.wait(DELAY)
            if self._view is None or time.monotonic() - self._started < DELAY:
                return
            view = self._view(self._report())
            while not self._ended.wait(view.every):
                view.show(self._report())
            view.close(self._report())


def in_notebook() -> bool:
    """Whether this process is a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})


def _view(progress: Progress) -> Callable[[Report], View] | None:
    """What shows the progress of a call; None if nothing does.

    Raises:
        ValueError: it has an unknown value.
    """
    if progress is False or callable(progress):
        return None
    if progress == "log":
        return _lines
    if progress is not None and progress is not True:
        raise ValueError(f"progress must be True, False, None, 'log' or a callable, got {progress!r}")
    if progress or in_notebook() or (sys.stderr is not None and sys.stderr.isatty()):
        return _bar
    return _lines if _logger.isEnabledFor(logging.INFO) else None


# Imported when something is shown: most calls are short, and importing tqdm takes longer than they do.


def _bar(first: Report) -> View:
    from entityframes.progress import bars

    return bars.NotebookBar(first) if in_notebook() else bars.TerminalBar(first)


def _lines(first: Report) -> View:
    from entityframes.progress import lines

    return lines.Lines()
