"""Progress as lines of text, for logs and for programs without a terminal."""

from __future__ import annotations

import logging
import sys

from entityframes.progress.report import Report

#: Seconds between two lines.
EVERY = 5.0

_logger = logging.getLogger("entityframes")


class Lines:
    """Logs a line at level INFO every few seconds; prints it to standard error if nobody handles that level."""

    def __init__(self) -> None:
        self.every = EVERY

    def show(self, report: Report) -> None:
        """Write a line."""
        _emit(line(report))

    def close(self, report: Report) -> None:
        """Write the last line."""
        _emit(line(report))


def line(report: Report) -> str:
    """A report as a line of text."""
    done, total, seconds = report.done, report.total, report.seconds
    parts = [f"{done:,} {report.unit}"]
    if total is not None and done != total:
        share = f" ({done / total:.0%})" if total else ""
        parts = [f"{done:,} of {total:,} {report.unit}{share}"]
    if report.state != "running":
        parts.insert(0, report.state)
    parts.append(f"{seconds:.1f} s")
    if done and seconds:
        parts.append(f"{done / seconds:,.0f} {report.unit}/s")
        if report.state == "running" and total is not None and done < total:
            parts.append(f"{(total - done) * seconds / done:,.0f} s left")
    counts = ", ".join(f"{count:,} {status}" for status, count in report.counts.items())
    return f"{report.what}: {', '.join(parts)}" + (f"; {counts}" if counts else "")


def _emit(text: str) -> None:
    if _logger.isEnabledFor(logging.INFO) and _logger.hasHandlers():
        _logger.info("%s", text)
    elif sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)
