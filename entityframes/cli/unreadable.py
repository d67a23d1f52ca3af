"""Which file cannot be read, at which line, and why: looked for once Polars has said no."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from entityframes.errors import SchemaError


@contextmanager
def told_where(paths: Sequence[str], file_format: str | None, separator: str | None) -> Iterator[None]:
    """Name the file and the line of what Polars cannot read.

    Raises:
        SchemaError: it cannot.
    """
    import polars as pl

    try:
        yield
    except pl.exceptions.PolarsError as error:
        for path in paths:
            if said := _complaint(path, file_format, separator):
                raise SchemaError(f"{Path(path).name}{said}") from error
        names = ", ".join(Path(path).name for path in paths[:5]) + (", ..." if len(paths) > 5 else "")
        # Polars goes on to advise what its own callers can do, and to show its plan.
        said = str(error).partition("Resolved plan")[0].partition("\n\n")[0]
        raise SchemaError(f"{names} cannot be read: {said}") from error


def _complaint(path: str, file_format: str | None, separator: str | None) -> str | None:
    from entityframes.files import format_of
    from entityframes.utf8 import is_utf8

    kind = file_format or format_of(path)
    if kind not in ("csv", "tsv", "ndjson") or path.lower().endswith((".zst", ".zstd")):
        return None
    opened: Any = gzip.open if path.lower().endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            return _not_json(file) if kind == "ndjson" else _ragged(file, separator or ("\t" if kind == "tsv" else ","))
    except UnicodeDecodeError:
        with opened(path, "rb") as file:
            line = next((number for number, text in enumerate(file, 1) if not is_utf8(text)), 1)
        return f", line {line}: not UTF-8; save the file as UTF-8"
    except (OSError, EOFError, csv.Error) as error:
        return f": {error}"


def _ragged(file: Any, separator: str) -> str | None:
    rows = csv.reader(file, delimiter=separator)
    first = next(rows, None)
    if first is None:
        return " is empty"
    for row in rows:
        if len(row) > len(first):
            return f", line {rows.line_num}: {len(row)} values, where the first line has {len(first)}"
    return None


def _not_json(file: Any) -> str | None:
    empty = True
    for number, line in enumerate(file, 1):
        empty = empty and not line.strip()
        try:
            right = not line.strip() or isinstance(json.loads(line), dict)
        except ValueError as error:
            return f", line {number}: no JSON: {error}"
        if not right:
            return f", line {number}: no JSON object"
    return " is empty" if empty else None
