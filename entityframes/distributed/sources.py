"""What the rows of a partition are read from: a file, a frame, or a function that returns either."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable
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


def partitions(source: Any) -> dict[str, Any]:
    """The partitions of a run by name, in order: the files of a pattern, or the items of a list.

    Args:
        source: a path, a pattern (``data/*.parquet``, ``s3://bucket/day=*/*.parquet``), or a list of paths, frames and
            functions that return one. Paths become absolute; items that are no paths are called ``0``, ``1``, ...

    Raises:
        FileNotFoundError: no file matches the pattern.
        ValueError: a path is there twice, or it is neither a Parquet nor an Arrow IPC file.
        TypeError: it is something else.
    """
    if is_path(source):
        paths = _matching(located(os.fspath(source)))
        if not paths:
            raise FileNotFoundError(f"no file matches {os.fspath(source)}")
        return {check_path(path): path for path in paths}
    if not isinstance(source, Iterable) or hasattr(source, "__arrow_c_stream__"):
        source = [source]
    named: dict[str, Any] = {}
    for number, item in enumerate(source):
        name = located(check_path(item)) if is_path(item) else str(number)
        if name in named:
            raise ValueError(f"{name} is listed twice")
        named[name] = name if is_path(item) else item
    return named


def located(path: str) -> str:
    """A path that is the same in every process: absolute, unless it is an address such as ``s3://...``."""
    return path if "://" in path else os.path.abspath(path)


#: The characters of a pattern.
_PATTERN = re.compile(r"[*?\[]")


def _matching(pattern: str) -> list[str]:
    """The files that a pattern matches, in order; a path that is no pattern is returned as it is."""
    if not _PATTERN.search(pattern):
        return [pattern]
    if "://" not in pattern:
        return sorted(glob.glob(pattern, recursive=True))
    from pyarrow import fs

    # The part before the first folder with a special character is listed.
    scheme, _, rest = pattern.partition("://")
    folder = rest[: rest.rindex("/", 0, _PATTERN.search(rest).start())]  # type: ignore[union-attr]
    system, base = fs.FileSystem.from_uri(f"{scheme}://{folder}")
    below = base + rest[len(folder) :]
    expression = re.compile(_expression(below))
    found = system.get_file_info(fs.FileSelector(base, recursive=True))
    return sorted(f"{scheme}://{info.path}" for info in found if info.is_file and expression.fullmatch(info.path))


def _expression(pattern: str) -> str:
    """A pattern as a regular expression: ``*`` and ``?`` stay within a folder, ``**`` does not."""
    pieces = re.split(r"(\*\*/?|\*|\?|\[[^\]]*\])", pattern)
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        special.get(piece, piece.replace("[!", "[^") if piece.startswith("[") else re.escape(piece)) for piece in pieces
    )
