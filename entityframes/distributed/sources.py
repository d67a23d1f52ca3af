"""What the rows of a partition are read from: a file, a frame, or a function that returns either."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

import polars as pl

from entityframes.frames import sources

#: How the files of each suffix are scanned. Of text files, Polars' readers do not report every row that they change or
#: leave out.
_SCANS: dict[str, Callable[[str], pl.LazyFrame]] = {
    ".parquet": lambda path: pl.scan_parquet(path, glob=False),
    ".pq": lambda path: pl.scan_parquet(path, glob=False),
    ".arrow": lambda path: pl.scan_ipc(path, glob=False),
    ".ipc": lambda path: pl.scan_ipc(path, glob=False),
    ".feather": lambda path: pl.scan_ipc(path, glob=False),
}


def is_path(source: Any) -> bool:
    """Whether a source is the path or the address of a file."""
    return isinstance(source, str | os.PathLike)


def check_path(path: str | os.PathLike[str]) -> str:
    """The path of a file that can be scanned, as text.

    Raises:
        ValueError: it is neither a Parquet nor an Arrow IPC file.
    """
    text = os.fspath(path)
    if PurePath(text).suffix.lower() not in _SCANS:
        raise ValueError(
            f"{text} is neither Parquet nor Arrow IPC ({', '.join(_SCANS)}): pass a function that reads it, such as "
            "lambda: pl.scan_csv(path)"
        )
    return text


def read(source: Any, transform: Callable[[pl.LazyFrame], Any] | None) -> Any:
    """The rows of a source, as `EntityStore.upsert` takes them.

    Args:
        source: a path, a frame or a stream, or a function that returns one of these.
        transform: is applied to a LazyFrame of them.

    Raises:
        Exception: as the readers and `transform` raise.
    """
    source = source() if callable(source) and not is_path(source) else source
    if is_path(source):
        path = check_path(source)
        source = _SCANS[PurePath(path).suffix.lower()](path)
    if transform is None:
        return source
    if isinstance(source, pl.LazyFrame):
        return transform(source)
    made = transform(sources.as_frame(source).lazy())
    # It was in memory before, and is then written as a whole, with each key once.
    return made.collect() if isinstance(made, pl.LazyFrame) else made
