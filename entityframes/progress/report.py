"""What is shown of the progress of a call, and what shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

#: running: the call has not ended; interrupted: it was stopped; failed: it ended with an exception.
State = Literal["running", "done", "interrupted", "failed"]


@dataclass(frozen=True)
class Report:
    """How far a call has got."""

    #: The name of the call, and the unit of the numbers.
    what: str
    unit: str
    done: int
    #: None if it is not known.
    total: int | None
    #: Number of rows by status.
    counts: dict[str, int]
    #: Seconds since it began.
    seconds: float
    state: State


class View(Protocol):
    """Shows reports. It is made for the first one, `DELAY` after the call began."""

    #: Seconds between two reports.
    every: float

    def show(self, report: Report) -> None:
        """Show a report while the call runs."""

    def close(self, report: Report) -> None:
        """Show the last report."""
