"""Trying again what may pass, where doing it twice does no harm."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

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
