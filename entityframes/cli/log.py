"""The log of the package on standard error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from entityframes.cli.output import echo, level
from entityframes.visible import visible

_LOGGER = logging.getLogger("entityframes")


class _Printer(logging.Handler):
    """Prints records on one line each."""

    def emit(self, record: logging.LogRecord) -> None:
        echo(f"{record.levelname.lower()}: {visible(record.getMessage())}", err=True)


@contextmanager
def printed() -> Iterator[None]:
    """Print as much of the log as -v and -q say."""
    printer, before = _Printer(), _LOGGER.level
    _LOGGER.addHandler(printer)
    louder = (logging.WARNING, logging.INFO, logging.DEBUG)[min(level.verbose, 2)]
    _LOGGER.setLevel(logging.ERROR if level.quiet else louder)
    try:
        yield
    finally:
        _LOGGER.removeHandler(printer)
        _LOGGER.setLevel(before)
