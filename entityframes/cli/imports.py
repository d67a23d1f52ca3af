"""The import command: imports files of rows as entities."""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from entityframes.cli.common import (
    echo,
    json_option,
    open_for_dry_run,
    open_store,
    print_exactly,
    print_summary,
    store_options,
)
from entityframes.visible import visible

#: The column with errors that --failed adds; import ignores it.
ERROR_COLUMN = "entityframes_error"
#: A temporary column with the position of a row in the input.
ROW_COLUMN = "entityframes_row"


#: The column with the text of an unreadable row in the file of failed rows; import ignores it.
RAW_COLUMN = "entityframes_line"

#: Settings of an option that takes names: comma-separated, or given several times.
_LISTING: dict[str, Any] = {"multiple": True, "metavar": "TEXT"}


@click.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--type",
    "entity_type",
    help="Entity type of every row; without it the file needs the columns entity_type and id, and may have content "
    "and metadata.",
)
@click.option(
    "--id",
    "id_columns",
    help="Column with the ids, or several, comma-separated and joined by --id-separator.",
    **_LISTING,
)
@click.option(
    "--id-separator",
    default="|",
    show_default=True,
    help="Separator between the parts of a composite id.",
)
@click.option("--content", help="Column with the text of each entity.  [default: none, stored content is kept]")
@click.option("--metadata", help="Columns to store as metadata, comma-separated.  [default: all others]", **_LISTING)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["csv", "tsv", "ndjson", "json", "parquet", "ipc"]),
    help="[default: from the file name]",
)
@click.option("--columns", help="Column names of a CSV without a header line, comma-separated.", **_LISTING)
@click.option("--separator", help=r"Separator between the values of a CSV, such as ; or \t.")
@click.option("--quote", default='"', help='Quote around values of a CSV that contain a separator.  [default: "]')
@click.option("--no-quote", is_flag=True, help="Quotes are part of the values; the same as --quote ''.")
@click.option(
    "--escape",
    metavar="CHARACTER",
    help=r"Character before a quote within a quoted value, such as \.  [default: a quote is doubled]",
)
@click.option("--encoding", help="Encoding of CSV and JSON, such as cp1252.  [default: from the BOM, else UTF-8]")
@click.option("--decimal-comma", is_flag=True, help="Read 1,5 as a number in a CSV.")
@click.option(
    "--null", "nulls", multiple=True, metavar="TEXT", help=r"Text that means null, such as \N; may be repeated."
)
@click.option(
    "--text",
    help="Columns to read as text regardless of their values (leading zeros), comma-separated.",
    **_LISTING,
)
@click.option(
    "--number",
    "numbers",
    help="Columns to read as numbers even if that changes the text (1.10 becomes 1.1), comma-separated.",
    **_LISTING,
)
@click.option("--batch-size", type=click.IntRange(1), help="Rows per transaction.  [default: as many as fit 8 MiB]")
@click.option(
    "--on-duplicate",
    type=click.Choice(["last", "first", "error"]),
    default="last",
    show_default=True,
    help="Which row of a duplicate key to use.",
)
@click.option(
    "--on-error",
    type=click.Choice(["isolate", "rollback", "raise"]),
    default="isolate",
    show_default=True,
    help="Scope of a bad row: fail only the row, roll back its batch, or stop the import.",
)
@click.option(
    "--absent",
    type=click.Choice(["keep", "clear"]),
    default="keep",
    show_default=True,
    help="What to do with stored content and metadata fields that are not in the file.",
)
@click.option(
    "--nulls",
    "null_values",
    type=click.Choice(["write", "keep"]),
    default="write",
    show_default=True,
    help="Whether a null overwrites the stored value or keeps it.",
)
@click.option("--no-embed", is_flag=True, help="Do not create embedding jobs.")
@click.option(
    "--failed",
    "failed_file",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Write failed rows to this file, to be corrected and imported again.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be done, without writing anything.")
@click.option("--progress/--no-progress", default=None, help="Show a progress bar.  [default: in a terminal]")
@json_option
@store_options
def import_command(files: Sequence[str], as_json: bool, url: str | None, namespace: str, **options: Any) -> None:
    """Import rows as entities: CSV, TSV, NDJSON, JSON, Parquet or Arrow IPC, also compressed; patterns, or - for stdin.

    Rows that are already stored are skipped, so to resume an interrupted import, run it again.

    \b
    entityframes import airports.dat --type airport --id id --content name \\
        --columns id,name,city,country,iata --null '\\N'
    entityframes import routes.csv --type route --id airline,source,destination
    """
    from entityframes.files import check_writable, read_files

    if options["entity_type"] is None and options["id_columns"]:
        raise click.UsageError("--id needs --type, the entity type of every row")
    if options["entity_type"] is not None and not options["id_columns"]:
        raise click.UsageError("--type needs --id, the column with the ids")
    _check_failed_file(options["failed_file"], files)
    with tempfile.TemporaryDirectory(prefix="entityframes-") as spool:
        # Errors in the files are raised before a store is created.
        with _nothing_imported():
            given = read_files(files, options["file_format"], _text_options(options), Path(spool))
            _name_columns(given, options)
            rows = given.scan()
            frame = _read(rows, given, options)
        with (open_for_dry_run if options["dry_run"] else open_store)(url, namespace) as store:
            if known := _known(store, options["entity_type"]):
                rows = given.scan(known)
                frame = _read(rows, given, options)
            if options["failed_file"]:
                check_writable(rows.collect_schema(), options["failed_file"])
            for line in given.notes.lines():
                echo(f"note: {visible(line)}", err=True)
            with _named(files):
                result = _import(store, frame, files, as_json, options, given)
        if options["failed_file"] and not result.ok:
            _write_failed(rows, result, given, options["failed_file"])
            echo(
                f"wrote the failed rows to {visible(options['failed_file'])}: correct them and import that file",
                err=True,
            )
    sys.exit(0 if result.ok else 1)


@contextmanager
def _nothing_imported() -> Iterator[None]:
    """Print a note if Ctrl-C is pressed while the files are read."""
    try:
        yield
    except KeyboardInterrupt:
        echo("note: nothing was imported: the files were still being read", err=True)
        raise


@contextmanager
def _named(files: Sequence[str]) -> Iterator[None]:
    """Add the names of the files, and the options to use, to a SchemaError of the store."""
    from entityframes.errors import SchemaError

    try:
        yield
    except SchemaError as error:
        names = ", ".join(files[:3]) + (", ..." if len(files) > 3 else "")
        help = " (use --text and --number to choose dtypes, --metadata to choose columns)"
        raise SchemaError(f"{names}: {error}{help if 'other dtypes' in str(error) else ''}") from error


def _text_options(options: dict[str, Any]) -> Any:
    """The options for text files."""
    from entityframes.files import TextOptions

    return TextOptions(
        columns=_listed(options["columns"]) or None,
        separator=options["separator"],
        quote="" if options["no_quote"] else options["quote"],
        escape=options["escape"],
        encoding=options["encoding"],
        decimal_comma=options["decimal_comma"],
        nulls=options["nulls"],
    )


def _listed(values: Sequence[str]) -> list[str]:
    """The names given by an option, comma-separated or repeated; a name that contains a comma must be quoted."""
    return [name.strip() for row in csv.reader(values, skipinitialspace=True) for name in row]


def _chosen(values: Sequence[str], names: Sequence[str]) -> list[str]:
    """The columns given by an option: a value is a column name if there is such a column, else a list of names."""
    found: list[str] = []
    for value in values:
        if value in names:
            found.append(value)
        elif all(part in names for part in value.split(",")):
            found += value.split(",")
        else:
            found += _listed([value])
    return list(dict.fromkeys(found))


def _name_columns(given: Any, options: dict[str, Any]) -> None:
    """Replace the values of options by the columns that they refer to, and set their dtypes."""
    names = given.names
    for option in ("id_columns", "metadata", "text", "numbers"):
        options[option] = _chosen(options[option], names)
    keys = options["id_columns"] if options["entity_type"] else ["entity_type", "id", "content"]
    if options["entity_type"] is None and given.kind in ("csv", "tsv"):
        keys = [*keys, "metadata"]
    if options["entity_type"] is None:
        missing = [name for name in keys[:2] if name not in names]
        if missing:
            raise click.UsageError(
                f"the file has no column {', '.join(map(repr, missing))}: give the type of its rows, and the "
                "column with their ids: --type TYPE --id COLUMN [--content COLUMN]"
            )
        keys = [name for name in keys if name in names]
    text = [*keys, *([options["content"]] if options["content"] else []), *options["text"]]
    given.choose(list(dict.fromkeys(text)), options["numbers"], options["metadata"])


def _read(rows: Any, given: Any, options: dict[str, Any]) -> Any:
    """The entity frame: eager for small files, so that duplicate keys are found across all rows, else lazy."""
    from entityframes.files import reading_errors

    with reading_errors(given.files):
        frame = _entity_frame(rows, given, options)
        return frame.collect() if given.bytes <= _SMALL else frame


def _import(store: Any, frame: Any, files: Sequence[str], as_json: bool, options: dict[str, Any], given: Any) -> Any:
    """Upsert an entity frame, and print the result for the files."""
    if options["dry_run"]:
        _dry_run(store, frame, options, as_json, given)
    rest = None if options["failed_file"] else "write them all with --failed FILE"
    try:
        result = store.upsert(
            frame,
            batch_size=options["batch_size"],
            embed=not options["no_embed"],
            absent=options["absent"],
            nulls=options["null_values"],
            on_duplicate=options["on_duplicate"],
            on_error=options["on_error"],
            progress=options["progress"],
        )
    except KeyboardInterrupt:
        print_summary(of_files(store.last_result, given, options), files, store.address, as_json, rest)
        echo("note: run the same command again to resume: rows that are already stored are skipped", err=True)
        raise
    parts = options["id_columns"]
    some_null = len(parts) > 1 and (result.failed["error"] == "id is null").any()
    result = of_files(result, given, options)
    print_summary(result, files, store.address, as_json, rest, given.notes.all())
    if some_null:
        echo(f"note: an id is null if any of its parts is null: {', '.join(map(visible, parts))}", err=True)
    return result


def of_files(result: Any, given: Any, options: dict[str, Any]) -> Any:
    """The result extended by the unreadable rows, with file and line of each failed row."""
    from dataclasses import replace

    if not given.unread.seen:
        return result
    counts = {**result.counts, "failed": result.counts["failed"] + len(given.unread.rows)}
    return replace(result, counts=counts, _log=_OfFiles(result, given.unread, options["entity_type"]))


class _OfFiles:
    """The outcomes of the rows of files, including unreadable rows, with file and line of each failed row."""

    def __init__(self, result: Any, unread: Any, entity_type: str | None) -> None:
        self._result, self._unread, self._entity_type = result, unread, entity_type

    def read(self) -> Any:
        """The outcomes of the readable rows; row counts only these, input_row is the position among all rows."""
        import polars as pl

        outcomes = self._result.outcomes
        rows = pl.Series([each.row for each in self._unread.rows], dtype=pl.Int64)
        # The number of unreadable rows before each readable row.
        before = (rows - pl.int_range(len(rows), eager=True)).search_sorted(
            outcomes["row"].cast(pl.Int64), side="right"
        )
        outcomes = outcomes.with_columns(input_row=outcomes["row"] + before.cast(pl.UInt32))
        failed = outcomes.filter(pl.col("status") == "failed")["input_row"]
        places = pl.Series("place", [self._unread.place(row) for row in failed], dtype=pl.String)
        outcomes = outcomes.join(pl.DataFrame([failed, places]), on="input_row", how="left", maintain_order="left")
        located = pl.concat_str("place", "error", separator=": ")
        return outcomes.with_columns(pl.coalesce(located, "error").alias("error")).drop("place")

    def collect(self) -> Any:
        import polars as pl

        read = self.read().with_columns(row="input_row").drop("input_row")
        unread = pl.DataFrame(
            {"row": [each.row for each in self._unread.rows], "error": [each.error for each in self._unread.rows]},
            {"row": pl.UInt32, "error": pl.String},
        )
        known = {"entity_type": self._entity_type, "status": "failed", "error_kind": "validation"}
        unread = unread.with_columns(pl.lit(value).alias(name) for name, value in known.items())
        unread = unread.select(
            (pl.col(name) if name in unread.columns else pl.lit(None)).cast(dtype).alias(name)
            for name, dtype in read.schema.items()
        )
        return pl.concat([read, unread]).sort("row")


def _dry_run(store: Any, frame: Any, options: dict[str, Any], as_json: bool, given: Any) -> NoReturn:
    import json

    from entityframes.cli import reports

    plan = store.plan(
        frame, absent=options["absent"], nulls=options["null_values"], on_duplicate=options["on_duplicate"]
    )
    report = reports.of_plan(plan, as_json)
    unread = given.unread.rows
    if as_json:
        listed = [{"row": each.row, "error": each.error} for each in unread[:1_000]]
        more = {"unreadable": len(unread), "unreadable_rows": listed, "notes": given.notes.all()}
        made = json.loads(report)
        report = json.dumps({**made, "ok": made["ok"] and not unread, **more}, ensure_ascii=False)
    elif unread:
        count = "1 row cannot be read" if len(unread) == 1 else f"{len(unread):,} rows cannot be read"
        first = unread[0]
        report = f"{count}, such as row {first.row}: {visible(first.error)}\n{report}"
    if as_json:
        print_exactly(report, json=True)
    else:
        echo(report)
    sys.exit(1 if plan.counts["invalid"] or unread else 0)


#: Files up to this size are read eagerly.
_SMALL = 512 << 20


def _check_failed_file(path: str | None, files: Sequence[str]) -> None:
    """Check that the file for failed rows can be written, before anything is imported."""
    from entityframes.files import check_name, format_of

    if path is None:
        return
    check_name(path)
    format_of(path)
    if not Path(path).resolve().parent.is_dir():
        raise click.UsageError(f"--failed {path}: the folder does not exist")
    if any(Path(path).resolve() == Path(file).resolve() for file in files):
        raise click.UsageError(f"--failed {path}: this is one of the files to import, give another name")


def _known(store: Any, entity_type: str | None) -> dict[str, Any]:
    """The dtypes of the metadata of a type in the store; empty if it has no entities of the type."""
    from entityframes.frames.schema import ENTITY_COLUMNS
    from entityframes.metadata.fields import Fields

    if entity_type is None or store._engine.is_empty(entity_type):
        return {}
    fields = {name: field.output for name, field in Fields(store._engine).of(entity_type).items()}
    return fields | {f"metadata.{name}": dtype for name, dtype in fields.items() if name in ENTITY_COLUMNS}


def _entity_frame(rows: Any, given: Any, options: dict[str, Any]) -> Any:
    import entityframes
    from entityframes.frames.schema import ADDED_COLUMNS, joined

    rows = rows.drop(ERROR_COLUMN, RAW_COLUMN, strict=False)
    schema = rows.collect_schema()
    if options["entity_type"] is None:
        # Such a file is an entity frame already.
        return rows
    columns = options["id_columns"]
    if missing := [name for name in columns if name not in schema]:
        raise _no_column(missing, list(schema))
    key: Any = columns[0] if len(columns) == 1 else joined(columns, schema, options["id_separator"])
    metadata = options["metadata"]
    if not metadata:
        # The columns of a composite id are kept as metadata, because they are useful on their own.
        taken = (columns[0] if len(columns) == 1 else None, options["content"])
        metadata = [name for name in schema if name not in taken and name not in ADDED_COLUMNS]
        left = [name for name in ADDED_COLUMNS if name in schema and name not in taken]
        if left and "content_hash" not in left:
            given.notes.add(
                "left",
                f"columns {', '.join(map(repr, left))} are ignored, because the store has columns with these names: "
                "give all columns to store with --metadata, or rename them",
            )
    return entityframes.entities(rows, options["entity_type"], id=key, content=options["content"], metadata=metadata)


def _no_column(missing: list[str], names: list[str]) -> Any:
    from entityframes.errors import SchemaError

    found = ", ".join(map(repr, names[:50])) + (", ..." if len(names) > 50 else "")
    return SchemaError(f"no column {', '.join(map(repr, missing))}; the file has {found}")


def _write_failed(rows: Any, result: Any, given: Any, path: str) -> None:
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
