"""What a forked process may not do: it has none of the threads of Polars, and what its parent has open is not its own.

A fork copies the memory of a process and one of its threads. Polars then waits for ever for its other threads, DuckDB
takes the parent's file for one of its own, and a connection that is closed at the end of the child is closed under the
parent. So a child is refused at once, unless its parent had neither made Polars start its threads nor opened a store:
importing the package is no use of it.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from inspect import isfunction
from typing import Any, ClassVar, TypeVar
from weakref import WeakSet

import numpy as np  # noqa: F401  (its threads, too, are there from the import on)
import polars as pl

from entityframes.errors import ClosedError, EntityFramesError

T = TypeVar("T")

HOW = (
    "Start the process with the method 'spawn' or 'forkserver' of multiprocessing (or with subprocess), and call "
    "entityframes.connect() in it"
)
#: Seconds after which threads of Polars that have not answered are not there.
PATIENCE = 5.0
_TASKS = "/proc/self/task"
#: Public names of guarded classes that may be used in a child as well.
_HARMLESS = ("close", "address", "root")


class _State:
    """Of this process."""

    #: Whether a store was opened here.
    opened = False
    #: Whether frame calls would hang here: None if that has to be tried.
    hangs: bool | None = False
    #: Whether a parent had opened a store.
    inherited = False
    #: What must not come to an end in a child, and the process that this is.
    kept: ClassVar[WeakSet[Any]] = WeakSet()
    #: What is known just before a fork: whether Polars' threads run.
    running: bool | None = None
    #: What is given to each child, so that it stays there to the end.
    given: tuple[Any, ...] = ()


def keep(thing: T) -> T:
    """Have children leave a connection alone: what closes it at their end would close it under this process."""
    _State.kept.add(thing)
    return thing


def opened() -> None:
    """Note that this process has opened a store."""
    _State.opened = True


def check(error: type[EntityFramesError] = ClosedError) -> None:
    """Refuse what would hang, or harm the parent, in a forked process.

    Raises:
        ClosedError: or `error`; this process was forked from one that had used Polars or opened a store.
    """
    if _State.hangs is None:
        _State.hangs = not _answers()
    if _State.hangs or _State.inherited:
        what = "opened a store" if _State.inherited else "worked with frames"
        why = "their threads and connections do not survive that, and calls would hang or harm the other process"
        raise error(f"this process was forked from one that had {what}, and {why}. {HOW}")


def guarded(kind: type[T]) -> type[T]:
    """A class whose public methods and properties begin with `check`, but for those that do no harm anywhere."""
    for name, member in list(vars(kind).items()):
        if name.startswith("_") or name in _HARMLESS:
            continue
        if isinstance(member, property) and member.fget is not None:
            setattr(kind, name, property(_guarded(member.fget), doc=member.__doc__))
        elif isfunction(member):
            setattr(kind, name, _guarded(member))
    return kind


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(*args: Any, **options: Any) -> Any:
        check()
        return method(*args, **options)

    return call


def _answers() -> bool:
    """Whether Polars' threads do what they are asked for."""
    asked = threading.Thread(target=pl.LazyFrame({"n": [0]}).filter(pl.col("n") == 0).collect, daemon=True)
    asked.start()
    asked.join(PATIENCE)
    return not asked.is_alive()


def _running() -> bool | None:
    """Whether the threads of Polars run that work on frames; None if that cannot be told.

    They are named when they begin to run. One that has no name yet, and is none of Python's, may be one of them.
    """
    try:
        names = {int(task): _name(task) for task in os.listdir(_TASKS)}
    except (OSError, ValueError):
        return None
    if any(name.startswith(("polars-", "async-executor")) and name != _AT_IMPORT for name in names.values()):
        return True
    known = _before_use | {thread.native_id for thread in threading.enumerate()}
    unnamed = [task for task, name in names.items() if name == names.get(os.getpid()) and task not in known]
    return None if unnamed else False


def _name(task: str) -> str:
    with suppress(OSError), open(f"{_TASKS}/{task}/comm") as comm:
        return comm.read().strip()
    return ""


def _before_fork() -> None:
    _State.running = _running()
    _State.given = tuple(_State.kept)


def _in_parent() -> None:
    _State.given = ()


def _in_child() -> None:
    if _State.hangs or _State.running:
        _State.hangs = True
    elif _State.hangs is None or _State.running is None:
        # Where it was not known of the parent, it is not known of the child.
        _State.hangs = None
    _State.inherited = _State.inherited or _State.opened
    _State.opened = False
    for thing in _State.given:
        # Nothing in this process takes the last reference away, not even its end.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    _State.given = ()


def _at_import() -> set[int]:
    """The threads that there are before any frame was worked on."""
    with suppress(OSError, ValueError):
        return {int(task) for task in os.listdir(_TASKS)}
    return set()


#: A thread that Polars starts when it is imported, and that nothing waits for; the kernel keeps 15 bytes of a name.
_AT_IMPORT = "polars-ooc-clea"
_before_use = _at_import()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
    if not any(_name(str(task)) == _AT_IMPORT for task in _before_use):
        # Polars was imported by a parent, or is of another version: what it has done there is not known.
        _State.hangs = None
