"""Short tracebacks of a Ctrl-C and of errors of the caller's code, without the frames of this package."""

from __future__ import annotations

import logging
import sysconfig
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
    frames = []
    following = error.__traceback__
    while following is not None:
        frames.append(following)
        following = following.tb_next
    kept: list[TracebackType] = list(dropwhile(lambda each: not _is_of_caller(each.tb_frame), frames))
    if kept or pressed:
        error.__traceback__ = kept[0] if kept else None


def _is_of_caller(frame: FrameType) -> bool:
    ours = str(frame.f_globals.get("__name__", "")).partition(".")[0] == "entityframes"
    return not ours and not frame.f_code.co_filename.startswith((*_INSTALLED, "<frozen"))
