"""Protection of forked processes, in which neither Polars nor open connections work.

A fork copies the memory of a process and only one of its threads. In the child Polars waits forever for its other
threads, DuckDB treats the parent's file as its own, and closing an inherited connection closes the connection of the
parent. Calls in a child therefore fail immediately, unless the parent had neither used Polars nor opened a store.
Importing the package does not count as use.
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

import numpy as np  # noqa: F401  (starts its threads on import)
import polars as pl

from entityframes.errors import ClosedError, EntityFramesError
from entityframes.tracebacks import shorten

T = TypeVar("T")

HOW = (
    "Start the process with the method 'spawn' or 'forkserver' of multiprocessing (or with subprocess), and call "
    "entityframes.connect() in it"
)
#: Seconds after which the threads of Polars are considered missing.
TIMEOUT = 5.0
_TASKS = "/proc/self/task"
#: Public names of guarded classes that may also be used in a child.
_HARMLESS = ("close", "address", "root")


class _State:
    """The state of this process."""

    #: Whether this process has opened a store.
    opened = False
    #: Whether calls of Polars would hang in this process; None if that has yet to be tested.
    hangs: bool | None = False
    #: Whether a parent process had opened a store.
    inherited = False
    #: Objects that must not be finalized in a child.
    kept: ClassVar[WeakSet[Any]] = WeakSet()
    #: Whether the threads of Polars were running just before a fork.
    running: bool | None = None
    #: Objects that a child keeps alive until it exits.
    given: tuple[Any, ...] = ()


def keep(thing: T) -> T:
    """Prevent children from finalizing a connection, which would close it for this process too."""
    _State.kept.add(thing)
    return thing


def opened() -> None:
    """Record that this process has opened a store."""
    _State.opened = True


def check(error: type[EntityFramesError] = ClosedError) -> None:
    """Raise if a call would hang, or harm the parent, because this process was forked.

    Raises:
        ClosedError: (or `error`) the process was forked from one that had used Polars or opened a store.
    """
    if _State.hangs is None:
        _State.hangs = not _polars_works()
    if _State.hangs or _State.inherited:
        what = "opened a store" if _State.inherited else "worked with frames"
        why = "threads and connections do not survive a fork, and calls would hang or harm the parent process"
        raise error(f"this process was forked from one that had {what}: {why}. {HOW}")


def guarded(kind: type[T]) -> type[T]:
    """Class decorator: call `check` first in every public method and property, except for harmless ones.

    Their exceptions have short tracebacks.
    """
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
        try:
            return method(*args, **options)
        except BaseException as error:
            shorten(error)
            raise

    return call


def _polars_works() -> bool:
    """Whether the threads of Polars complete a query within `TIMEOUT`."""
    query = threading.Thread(target=pl.LazyFrame({"n": [0]}).filter(pl.col("n") == 0).collect, daemon=True)
    query.start()
    query.join(TIMEOUT)
    return not query.is_alive()


def _running() -> bool | None:
    """Whether the worker threads of Polars are running; None if unknown.

    A thread is named when it starts to run. An unnamed thread that was not started by Python may be one of them.
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
        # Unknown in the parent means unknown in the child.
        _State.hangs = None
    _State.inherited = _State.inherited or _State.opened
    _State.opened = False
    for thing in _State.given:
        # An extra reference, so that the object is not finalized even when this process exits.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    _State.given = ()


def _at_import() -> set[int]:
    """The threads that exist before Polars is used."""
    with suppress(OSError, ValueError):
        return {int(task) for task in os.listdir(_TASKS)}
    return set()


#: A thread that Polars starts on import and never waits for; the kernel truncates names to 15 bytes.
_AT_IMPORT = "polars-ooc-clea"
_before_use = _at_import()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
    if not any(_name(str(task)) == _AT_IMPORT for task in _before_use):
        # Polars was imported by a parent, or is another version: its state is unknown.
        _State.hangs = None
