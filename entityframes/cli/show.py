"""Frames on a terminal: a table if it fits its width, else each row as a record of one line for each column."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from entityframes.cli.output import echo
from entityframes.visible import visible

#: Most rows that are shown.
MOST = 50
#: Text is cut to this width before rows are shown as records; errors are not cut but wrapped; numbers are neither.
_FEWEST, _FEWEST_OF_ERRORS = 12, 24
_ERROR = "error"
_GAP = 2
#: Columns of a store, whose fractions of seconds nobody reads.
_IN_SECONDS = ("created_at", "updated_at", "lease_until")


def print_table(frame: pl.DataFrame, *, err: bool = False, most: int = MOST, rest: str | None = None) -> None:
    """Print the first rows of a frame.

    Args:
        frame: the rows.
        err: whether to print them on standard error.
        most: the most rows that are printed.
        rest: how to see the others.
    """
    console = _console(err=err)
    names = [Text(visible(name), "bold") for name in frame.columns]
    rows = [
        [_text(name, value) for name, value in zip(frame.columns, row, strict=True)] for row in frame.head(most).rows()
    ]
    widths = _widths(frame.schema, [names, *rows], console.width)
    if widths is None:
        for n, row in enumerate(rows):
            console.print(*[""] * min(n, 1), _record(zip(names, row, strict=True)), sep="\n")
    else:
        numeric = [dtype.is_numeric() for dtype in frame.dtypes]
        console.print(_table(names, rows, widths, numeric))
    if frame.height > most:
        echo(f"and {frame.height - most:,} more{f': {rest}' if rest else ''}", err=err)


def print_record(row: Mapping[str, Any]) -> None:
    """Print one row, a line for each column."""
    _console().print(_record((Text(visible(name), "bold"), _text(name, value)) for name, value in row.items()))


def print_entity(entity: Mapping[str, Any]) -> None:
    """Print an entity for reading: its key and times, its metadata, and its content as it is."""
    echo(f"{visible(entity['entity_type'])}/{visible(entity['id'])}")
    print_record({name: entity[name] for name in ("created_at", "updated_at")})
    metadata = json.loads(entity["metadata"])
    if metadata:
        echo("")
        print_record(metadata)
    if entity["content"]:
        echo("")
        echo(entity["content"].expandtabs(4))


def _console(*, err: bool = False) -> Console:
    # Lines in a file are not wrapped. Without a height, rich assumes 80 columns if $TERM is dumb.
    stream = sys.stderr if err else sys.stdout
    width = shutil.get_terminal_size().columns if stream.isatty() else 1_000
    return Console(stderr=err, width=width, height=25, highlight=False)


def _widths(schema: pl.Schema, rows: list[list[Text]], available: int) -> list[int] | None:
    """The widths of columns, of which the widest texts are cut; None if they do not fit."""
    widths = [max(cell_len(row[n].plain) for row in rows) for n in range(len(schema))]
    fewest = [
        (_FEWEST_OF_ERRORS if name == _ERROR else _FEWEST) if dtype == pl.String or dtype.is_nested() else width
        for (name, dtype), width in zip(schema.items(), widths, strict=True)
    ]
    while sum(widths) + _GAP * (len(widths) - 1) > available:
        cut = [n for n, width in enumerate(widths) if width > fewest[n]]
        if not cut:
            return None
        widths[max(cut, key=widths.__getitem__)] -= 1
    return widths


def _table(names: list[Text], rows: list[list[Text]], widths: list[int], numeric: list[bool]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, _GAP - 1, 0, 0), show_edge=False)
    for name, width, is_number in zip(names, widths, numeric, strict=True):
        wrapped = name.plain == _ERROR
        table.add_column(
            name, width=width, no_wrap=not wrapped, overflow="fold" if wrapped else "ellipsis",
            justify="right" if is_number else "left",
        )  # fmt: skip
    for row in rows:
        table.add_row(*row)
    return table


def _record(row: Any) -> Table:
    grid = Table.grid(padding=(0, _GAP, 0, 0))
    grid.add_column(overflow="fold", max_width=24)
    grid.add_column(overflow="fold")
    for name, text in row:
        grid.add_row(name, text)
    return grid


def _text(name: str, value: Any) -> Text:
    """A value on one line. It is a Text, so that brackets in the data are not interpreted as markup."""
    if value is None:
        return Text("null", "dim")
    if isinstance(value, bool):
        return Text(str(value).lower())
    if isinstance(value, dt.datetime):
        shown = value.isoformat(" ", "seconds" if name in _IN_SECONDS else "auto")
        return Text(shown.replace("+00:00", "Z"))
    if isinstance(value, dict | list):
        return Text(visible(json.dumps(value, ensure_ascii=False, default=str)))
    return Text(visible(value))
