"""Progress bars. The only module that uses tqdm."""

from __future__ import annotations

import html
import sys
import time
from typing import Any

from tqdm import tqdm

from entityframes.progress.report import Report, State
from entityframes.statuses import COLORS, PLAIN, TRACK

#: The color of a bar that ended too early.
_ENDED: dict[State, str] = {"interrupted": COLORS["cancelled"], "failed": COLORS["failed"]}


#: Smaller numbers are shown in a terminal as they are.
_SCALED = 1_000


class TerminalBar(tqdm):  # type: ignore[misc]
    """The bar of tqdm, with the numbers by status."""

    #: tqdm needs no thread of its own to redraw it.
    monitor_interval = 0
    every = 0.25

    def __init__(self, first: Report, **options: Any) -> None:
        self.report = first
        scaled = first.total is None or first.total >= _SCALED
        super().__init__(
            total=first.total, desc=first.what, unit=f" {first.unit}", unit_scale=scaled, dynamic_ncols=True,
            miniters=1, mininterval=0.0, **options,
        )  # fmt: skip
        # It appears later than the call began.
        self.start_t = self.last_print_t = time.time() - first.seconds
        self.show(first)

    def show(self, report: Report) -> None:
        """Draw a report."""
        self.report = report
        self.total = report.total
        counts = {status: f"{count:,}" for status, count in report.counts.items()}
        self.set_postfix(counts, refresh=False)
        if report.done == self.n or not self.update(report.done - self.n):
            self.refresh()

    def refresh(self, *_: Any, **__: Any) -> None:
        """Draw the bar; unlike in tqdm, other bars go on if that fails."""
        if not self.disable:
            with self._lock:
                self.display()

    def close(self, report: Report | None = None) -> None:
        """Draw the last report, which stays."""
        if report is not None:
            self.show(report)
        super().close()

    def __del__(self) -> None:
        """Do nothing: a bar that could not be drawn is not drawn again."""


class NotebookBar(TerminalBar):
    """A bar that draws itself as HTML without scripts, and is shown again wherever the notebook is.

    It needs no ipywidgets, whose bars are empty when a notebook is reopened. All its styles are kept by the sanitizer
    of JupyterLab for notebooks that are not trusted; where styles are dropped, the numbers remain as text.
    """

    def __init__(self, first: Report) -> None:
        self._handle: Any = None
        # As for the other bars of tqdm that do not write to a terminal.
        super().__init__(first, gui=True, file=sys.stdout)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw the bar."""
        from IPython.display import display

        if self._handle is None:
            self._handle = display(self, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(self)

    def refresh(self, *_: Any, **__: Any) -> None:
        """Draw the bar; other bars do not wait for that."""
        if not self.disable:
            self.display()

    def clear(self, *_: Any, **__: Any) -> None:
        """Do nothing: the output of a cell is not overwritten by what is printed next to it."""

    def close(self, report: Report | None = None) -> None:
        """Draw the last report, which stays."""
        if not self.disable:
            super().close(report)
            # The average rate instead of the recent one.
            self._ema_dt = lambda: None
            self.display()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": self._html(), "text/plain": str(self)}

    def _html(self) -> str:
        text = html.escape(self._text())
        squares = "".join(
            f' · <span style="white-space:nowrap">{_square(COLORS.get(status, PLAIN))} {count:,} '
            f"{html.escape(status)}</span>"
            for status, count in self.report.counts.items()
        )
        return (
            f'<div style="max-width:70em"><div style="display:flex;height:0.6em;border-radius:3px;overflow:hidden;'
            f'background:{TRACK}">{self._segments()}</div><div style="font-size:90%">{text}{squares}</div></div>'
        )

    def _text(self) -> str:
        """What tqdm says, with whole numbers; the time that is left only while the call runs."""
        report = self.report
        state = f"{report.state} " if report.state in _ENDED else ""
        count = "{n:,}{unit}" if report.total is None else "{n:,}/{total:,}"
        left = "<{remaining}" if report.total is not None and report.state == "running" else ""
        form = f"{{l_bar}}\n{state}{count} [{{elapsed}}{left}, {{rate_fmt}}]"
        text = self.format_meter(**self.format_dict | {"bar_format": form, "postfix": None, "ncols": None})
        return " ".join(part.strip("| ") for part in text.split("\n"))

    def _segments(self) -> str:
        """The filled part of the bar: its statuses, or one color if the call ended too early."""
        report, plain = self.report, self.colour or PLAIN
        counts, colors = report.counts or {report.what: report.done}, COLORS
        whole = report.total
        if report.state in _ENDED:
            # Rows that were cancelled are not done.
            counts, colors = {report.state: report.done}, {report.state: _ENDED[report.state]}
            whole = whole or report.done
        elif report.state == "done":
            whole = sum(counts.values())
        # Without a total, it is not known how full the bar is.
        return "".join(
            f'<div style="width:{min(100 * count / whole, 100):.2f}%;background:{colors.get(status, plain)}"></div>'
            for status, count in counts.items()
            if whole
        )


def _square(color: str) -> str:
    return f'<span style="display:inline-block;width:0.8em;height:0.8em;background:{color}"></span>'
