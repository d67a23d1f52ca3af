"""Progress reporting. The only module that uses tqdm."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

#: None shows a progress bar in notebooks and terminals, True always, False never. A callable receives the rows done and
#: the total (or None).
Progress = bool | Callable[[int, int | None], None] | None


#: Seconds before a call that reads shows its progress.
DELAY = 1.0


class Reporter:
    """Reports the progress of a run with a bar or through a callable; a context manager that closes the bar.

    Args:
        progress: see `Progress`.
        total: the number of rows, or None; a function that counts them is called only if progress is reported.
        unit: the unit of the count.
        delay: seconds before the bar appears, so that short calls show none: in a notebook a bar is several widgets.
    """

    def __init__(
        self, progress: Progress, total: int | Callable[[], int] | None, *, unit: str = "rows", delay: float = 0.0
    ) -> None:
        self._callback = progress if callable(progress) else None
        self._done = 0
        wanted = progress is True or (progress is None and (in_notebook() or sys.stderr.isatty()))
        if callable(total):
            total = total() if wanted or self._callback else None
        self._total = total
        self._unit = unit
        self._bar: Any = None
        self._due = time.monotonic() + delay if wanted else float("inf")
        if delay == 0:
            self._show()

    def advance(self, rows: int, counts: Mapping[str, int] | None = None) -> None:
        """Report that `rows` more rows are done; `counts` are shown next to the bar."""
        self._show()
        self._done += rows
        if self._bar is not None:
            if counts is not None:
                shown = {status: f"{count:,}" for status, count in counts.items() if count}
                self._bar.set_postfix(shown, refresh=False)
            self._bar.update(rows)
        if self._callback is not None:
            self._callback(self._done, self._total)

    def _show(self) -> None:
        if self._bar is None and time.monotonic() >= self._due:
            self._bar = _bar(self._total, self._unit, self._done)

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *exc: object) -> Literal[False]:
        if self._bar is not None:
            self._bar.close()
        return False


def in_notebook() -> bool:
    """Whether this process is a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})


def _bar(total: int | None, unit: str, done: int) -> Any:
    import tqdm

    kind: Any = tqdm.tqdm
    if in_notebook():
        try:
            import ipywidgets  # type: ignore[import-untyped]  # noqa: F401  (tqdm warns without it)
            import tqdm.notebook

            kind = tqdm.notebook.tqdm
        except ImportError:
            pass
    return kind(total=total, unit=f" {unit}", unit_scale=True, initial=done, dynamic_ncols=True)
