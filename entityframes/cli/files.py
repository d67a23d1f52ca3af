"""Shared by imports of entities and of tables: reading the files, and the rows that failed with file and line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from entityframes.cli.errors import UsageError
from entityframes.cli.output import echo, print_exactly
from entityframes.visible import visible

#: The column with errors that --failed adds; import ignores it.
ERROR_COLUMN = "entityframes_error"
#: A temporary column with the position of a row in the input.
ROW_COLUMN = "entityframes_row"
#: The column with the text of an unreadable row in the file of failed rows; import ignores it.
RAW_COLUMN = "entityframes_line"

#: Files up to this size are read eagerly.
_SMALL = 512 << 20


@contextmanager
def nothing_imported() -> Iterator[None]:
    """Print a note if Ctrl-C is pressed while the files are read."""
    try:
        yield
    except KeyboardInterrupt:
        echo("note: nothing was imported: the files were still being read", err=True)
        raise


def text_options(options: dict[str, Any]) -> Any:
    """The options for text files."""
    from entityframes.files import TextOptions

    return TextOptions(
        columns=listed(options["columns"]) or None,
        separator=options["separator"],
        quote="" if options["no_quote"] else options["quote"],
        escape=options["escape"],
        encoding=options["encoding"],
        decimal_comma=options["decimal_comma"],
        nulls=options["nulls"],
    )


def listed(values: Sequence[str]) -> list[str]:
    """The names given by an option, comma-separated or repeated; a name that contains a comma must be quoted."""
    import csv

    return [name.strip() for row in csv.reader(values, skipinitialspace=True) for name in row]


def chosen(values: Sequence[str], names: Sequence[str]) -> list[str]:
    """The columns given by an option: a value is a column name if there is such a column, else a list of names."""
    found: list[str] = []
    for value in values:
        if value in names:
            found.append(value)
        elif all(part in names for part in value.split(",")):
            found += value.split(",")
        else:
            found += listed([value])
    return list(dict.fromkeys(found))


def check_output(option: str, path: str, file_format: str | None = None) -> None:
    """Check that a frame can be written to the file of an option, before anything else is done."""
    from pathlib import Path

    from entityframes.files import check_name, format_of

    check_name(path)
    if file_format is None:
        format_of(path)
    if not Path(path).resolve().parent.is_dir():
        raise click.UsageError(f"{option} {path}: the folder does not exist")


def check_failed_file(path: str | None, files: Sequence[str]) -> None:
    """Check that the file for failed rows can be written, before anything is imported."""
    from pathlib import Path

    if path is None:
        return
    check_output("--failed", path)
    if any(Path(path).resolve() == Path(file).resolve() for file in files):
        raise UsageError(f"--failed {path}: this is one of the files to import", advice="give another name")


def read(frame: Any, given: Any) -> Any:
    """The rows of files: eager for small files, so that duplicate keys are found across all rows, else lazy."""
    from entityframes.files import reading_errors

    with reading_errors(given.files):
        return frame.collect() if given.bytes <= _SMALL else frame


def of_files(result: Any, given: Any, known: dict[str, Any]) -> Any:
    """The result extended by the unreadable rows, with file and line of each failed row.

    Args:
        result: the result of the upsert.
        given: the rows of the files.
        known: what is known of the key of unreadable rows.
    """
    from dataclasses import replace

    if not given.unread.seen:
        return result
    counts = {**result.counts, "failed": result.counts["failed"] + len(given.unread.rows)}
    return replace(result, counts=counts, _log=_OfFiles(result, given.unread, known))


def _located(rows: Any, failed: Any, unread: Any) -> Any:
    """Rows of a result or a plan with input_row, their position among all rows; errors begin with file and line.

    Args:
        rows: a frame with row, which counts only the readable rows, and error.
        failed: an expression for the rows that failed.
        unread: the unreadable rows.
    """
    import polars as pl

    skipped = pl.Series([each.row for each in unread.rows], dtype=pl.Int64)
    # The number of unreadable rows before each readable row.
    before = (skipped - pl.int_range(len(skipped), eager=True)).search_sorted(rows["row"].cast(pl.Int64), side="right")
    rows = rows.with_columns(input_row=rows["row"] + before.cast(pl.UInt32))
    # A row that a mirror could not delete is in no file.
    bad = rows.filter(failed)["input_row"].drop_nulls()
    places = pl.Series("place", [unread.place(row) for row in bad], dtype=pl.String)
    rows = rows.join(pl.DataFrame([bad, places]), on="input_row", how="left", maintain_order="left")
    located = pl.concat_str("place", "error", separator=": ")
    return rows.with_columns(pl.coalesce(located, "error").alias("error")).drop("place")


class _OfFiles:
    """The outcomes of the rows of files, including unreadable rows, with file and line of each failed row."""

    def __init__(self, result: Any, unread: Any, known: dict[str, Any]) -> None:
        self._result, self._unread, self._known = result, unread, known

    def read(self) -> Any:
        """The outcomes of the readable rows; row counts only these, input_row is the position among all rows."""
        import polars as pl

        return _located(self._result.outcomes, pl.col("status") == "failed", self._unread)

    def collect(self) -> Any:
        import polars as pl

        read = self.read().with_columns(row="input_row").drop("input_row")
        unread = pl.DataFrame(
            {"row": [each.row for each in self._unread.rows], "error": [each.error for each in self._unread.rows]},
            {"row": pl.UInt32, "error": pl.String},
        )
        known = {**self._known, "status": "failed", "error_kind": "validation"}
        unread = unread.with_columns(pl.lit(value).alias(name) for name, value in known.items())
        unread = unread.select(
            (pl.col(name) if name in unread.columns else pl.lit(None)).cast(dtype).alias(name)
            for name, dtype in read.schema.items()
        )
        return pl.concat([read, unread]).sort("row", nulls_last=True)


def report_plan(plan: Any, given: Any, as_json: bool) -> NoReturn:
    """Print what an import would do, and exit with its status."""
    import json
    from dataclasses import replace

    import polars as pl

    from entityframes.cli import reports

    located = _located(plan.frame, pl.col("action") == "invalid", given.unread)
    located = located.with_columns(row="input_row").drop("input_row")
    report = reports.of_plan(replace(plan, frame=located), as_json)
    unread = given.unread.rows
    if as_json:
        listed = [{"row": each.row, "error": each.error} for each in unread[:1_000]]
        more = {"unreadable": len(unread), "unreadable_rows": listed, "notes": given.notes.all()}
        made = json.loads(report)
        report = json.dumps({**made, "ok": made["ok"] and not unread, **more}, ensure_ascii=False)
        print_exactly(report, json=True)
    else:
        if unread:
            count = "1 row cannot be read" if len(unread) == 1 else f"{len(unread):,} rows cannot be read"
            first = unread[0]
            report = f"{count}, such as row {first.row}: {visible(first.error)}\n{report}"
        echo(report)
    sys.exit(1 if plan.counts["invalid"] or unread else 0)


def write_failed(rows: Any, result: Any, given: Any, path: str) -> None:
    """Write the failed input rows unchanged, with the error in a column that a later import ignores.

    An unreadable row has its text in a separate column, and the values that could be assigned to columns.
    """
    import polars as pl

    from entityframes.files import write_file
    from entityframes.results import UNRESOLVED

    outcomes = result._log.read() if isinstance(result._log, _OfFiles) else result.outcomes
    bad = outcomes.filter(pl.col("status").is_in(UNRESOLVED))
    reasons = bad.select(
        pl.col("row").alias(ROW_COLUMN), pl.coalesce("error", pl.col("status").cast(pl.String)).alias(ERROR_COLUMN)
    )
    numbered = rows.drop(ERROR_COLUMN, RAW_COLUMN, strict=False).with_row_index(ROW_COLUMN)
    failed = numbered.filter(pl.col(ROW_COLUMN).is_in(bad["row"].implode())).collect()
    failed = failed.join(reasons, on=ROW_COLUMN, how="left", maintain_order="left").drop(ROW_COLUMN)
    if given.unread.rows:
        failed = pl.concat([failed, _unread_frame(given, failed)], how="diagonal_relaxed")
    write_file(failed, path)


def _unread_frame(given: Any, like: Any) -> Any:
    """The unreadable rows, with the columns of the readable ones."""
    import polars as pl

    rows = given.unread.rows
    frame = pl.DataFrame(
        {RAW_COLUMN: [each.raw for each in rows], ERROR_COLUMN: [each.error for each in rows]},
        {RAW_COLUMN: pl.String, ERROR_COLUMN: pl.String},
    )
    values = {
        name: [None if each.values is None or n >= len(each.values) else each.values[n] or None for each in rows]
        for n, name in enumerate(given.names)
        if name in like.columns
    }
    texts = pl.DataFrame(values, dict.fromkeys(values, pl.String)) if values else pl.DataFrame()
    # A value that cannot be cast to the dtype of its column is only in the text of the line.
    typed = [texts[name].cast(like.schema[name], strict=False) for name in values if not like.schema[name].is_nested()]
    return frame.hstack(typed)
