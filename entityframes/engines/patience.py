"""Trying again what may pass, where doing it twice does no harm."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import TypeVar

import polars as pl

from entityframes.errors import TransientError

T = TypeVar("T")

#: Seconds between the tries.
PAUSES = (0.05, 0.2, 0.5, 1.0)


def patiently(call: Callable[[], T]) -> T:
    """What a call returns; it is made again after an error that may pass."""
    for pause in PAUSES:
        try:
            return call()
        except TransientError:
            time.sleep(pause)
    return call()


def streamed_patiently(begin: Callable[[], Generator[pl.DataFrame]]) -> Iterator[pl.DataFrame]:
    """The rows of a query in pieces; it begins again after an error that may pass, until a first piece was handed on.

    Raises:
        TransientError: it did not pass, or pieces were handed on before, which a second try would bring again.
    """
    pauses = iter(PAUSES)
    while True:
        rows = 0
        try:
            with closing(begin()) as pieces:
                for piece in pieces:
                    yield piece
                    rows += piece.height
            return
        except TransientError as error:
            if rows:
                said = f"after {rows:,} rows had been handed on: {error}. Nothing was changed: read them again"
                raise type(error)(said, error.sqlstate) from error
            pause = next(pauses, None)
            if pause is None:
                raise
            time.sleep(pause)
