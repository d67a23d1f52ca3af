"""Short tracebacks of a Ctrl-C and of errors of the caller's code, without the frames of this package."""

from __future__ import annotations

import logging
import sysconfig
from collections.abc import Iterable, Iterator
from itertools import dropwhile
from types import FrameType, TracebackType

_logger = logging.getLogger("entityframes")

#: Where code is that the caller has not written.
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def shorten(error: BaseException) -> None:
    """Drop the frames of this package above code of the caller that it has called, such as an iterator.

    If there is none, a KeyboardInterrupt keeps no frame, and any other error keeps all of them. The log has the whole
    traceback of a KeyboardInterrupt, at level DEBUG.
    """
    pressed = isinstance(error, KeyboardInterrupt)
    if pressed:
        _logger.debug("interrupted", exc_info=error)
        # The database driver's own error about the cancelled statement.
        error.__cause__, error.__suppress_context__ = None, True
    frames = list(_frames(error.__traceback__))
    kept = list(dropwhile(lambda each: not _is_of_caller(each.tb_frame), frames))
    if pressed:
        # Those of the signal handler as well.
        error.__traceback__ = _chained(each for each in kept if not _is_ours(each.tb_frame))
    elif kept:
        error.__traceback__ = kept[0]


def _frames(first: TracebackType | None) -> Iterator[TracebackType]:
    while first is not None:
        yield first
        first = first.tb_next


def _chained(frames: Iterable[TracebackType]) -> TracebackType | None:
    following = None
    for each in reversed(list(frames)):
        following = TracebackType(following, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return following


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] == "entityframes"


def _is_of_caller(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    # The path of a compiled module is relative to where it was built.
    installed = name.startswith((*_INSTALLED, "<frozen")) or name.endswith(".pyx")
    return not installed and not _is_ours(frame)
