"""The import command: files of rows become entities."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from entityframes.cli.common import (
    json_option,
    open_for_dry_run,
    open_store,
    print_exactly,
    print_summary,
    say,
    store_options,
)
from entityframes.visible import visible

#: A column that --failed adds and that import leaves out again.
ERROR_COLUMN = "entityframes_error"
#: Where a row is in the input, beside the columns of the file.
ROW_COLUMN = "entityframes_row"


def _joined(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> str | None:
    """Names of an option that was given several times, as if it had been given once with commas between."""
    return ",".join(values) or None


#: An option that lists names.
_LISTING: dict[str, Any] = {"multiple": True, "callback": _joined, "metavar": "TEXT"}


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
    help="Column with the ids, or several with commas between, joined by --id-separator.",
    **_LISTING,
)
@click.option(
    "--id-separator", default="|", show_default=True, help="Stands between the parts of an id made of several columns."
)
@click.option(
    "--content", help="Column with the text of each entity.  [default: none, what is stored keeps its content]"
)
@click.option("--metadata", help="Columns to keep as metadata, with commas between.  [default: all others]", **_LISTING)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["csv", "tsv", "ndjson", "parquet", "ipc"]),
    help="[default: by the file's name]",
)
@click.option("--columns", help="Names of the columns of a CSV without a header line, with commas between.", **_LISTING)
@click.option("--separator", help="Stands between the values of a CSV.")
@click.option(
    "--null", "nulls", multiple=True, metavar="TEXT", help=r"Text that means null, such as \N; may be repeated."
)
@click.option(
    "--text",
    help="CSV columns to keep as text whatever they look like (leading zeros), with commas between.",
    **_LISTING,
)
@click.option("--batch-size", type=click.IntRange(1), help="Rows in a transaction.  [default: as many as fit 8 MiB]")
@click.option(
    "--on-duplicate",
    type=click.Choice(["last", "first", "error"]),
    default="last",
    show_default=True,
    help="Which row of a repeated key counts.",
)
@click.option(
    "--on-error",
    type=click.Choice(["isolate", "rollback", "raise"]),
    default="isolate",
    show_default=True,
    help="What a bad row takes down: itself, its batch, or the import.",
)
@click.option(
    "--absent",
    type=click.Choice(["keep", "clear"]),
    default="keep",
    show_default=True,
    help="What becomes of stored content and metadata fields that the file does not have.",
)
@click.option(
    "--nulls",
    "null_values",
    type=click.Choice(["write", "keep"]),
    default="write",
    show_default=True,
    help="Whether a null is stored, or leaves what is stored alone.",
)
@click.option("--no-embed", is_flag=True, help="Make no embedding jobs.")
@click.option(
    "--failed",
    "failed_file",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Write rows that failed here, to be corrected and imported again.",
)
@click.option("--dry-run", is_flag=True, help="Tell what would be done, and write nothing.")
@click.option("--progress/--no-progress", default=None, help="Show a progress bar.  [default: in a terminal]")
@json_option
@store_options
def import_command(files: Sequence[str], as_json: bool, url: str | None, namespace: str, **options: Any) -> None:
    """Import rows as entities: CSV, TSV, NDJSON, Parquet or Arrow IPC, also .gz and .zst, patterns, or - for stdin.

    Rows that exist and are equal are left alone, so an import that was stopped is simply run again.

    \b
    entityframes import airports.dat --type airport --id id --content name \\
        --columns id,name,city,country,iata --null '\\N'
    entityframes import routes.csv --type route --id airline,source,destination
    """
    from entityframes.cli.unreadable import told_where
    from entityframes.files import expanded

    if options["entity_type"] is None and options["id_columns"]:
        raise click.UsageError("--id needs --type, the entity type of every row")
    _check_failed_file(options["failed_file"], files)
    with tempfile.TemporaryDirectory(prefix="entityframes-") as spool:
        paths = expanded(files, options["file_format"], Path(spool))
        with told_where(paths, options["file_format"], options["separator"]):
            # What cannot be read is told before a store is made for it.
            rows = _scan(paths, options, {})
            frame = _read(rows, paths, options)
            with (open_for_dry_run if options["dry_run"] else open_store)(url, namespace) as store:
                known = _known(store, options["entity_type"])
                as_stored = _scan(paths, options, known) if known else rows
                if as_stored.collect_schema() != rows.collect_schema():
                    _tell_text(rows.collect_schema(), as_stored.collect_schema())
                    rows = as_stored
                    frame = _read(rows, paths, options)
                _tell_odd_values(frame, paths, options, known)
                result = _import(store, frame, files, as_json, options)
        if options["failed_file"] and not result.ok:
            _write_failed(rows, result, options["failed_file"])
            say(
                f"wrote the failed rows to {visible(options['failed_file'])}: correct them and import that file",
                err=True,
            )
    sys.exit(0 if result.ok else 1)


def _read(rows: Any, paths: Sequence[str], options: dict[str, Any]) -> Any:
    """The entity frame: of files that fit at once, so that repeated keys are found in all of it, else lazy."""
    frame = _entity_frame(rows, options)
    return frame.collect() if sum(Path(path).stat().st_size for path in paths) <= _SMALL else frame


def _import(store: Any, frame: Any, files: Sequence[str], as_json: bool, options: dict[str, Any]) -> Any:
    """Upsert an entity frame, and tell what came of the files that it is from."""
    if options["dry_run"]:
        _dry_run(store, frame, options, as_json)
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
        print_summary(store.last_result, files, store.address, as_json, rest)
        say("note: the same command again goes on: what is stored is left as it is", err=True)
        raise
    print_summary(result, files, store.address, as_json, rest)
    parts = _names(options["id_columns"])
    if len(parts) > 1 and (result.failed["error"] == "id is null").any():
        say(f"note: an id is null where any of its parts is: {', '.join(map(visible, parts))}", err=True)
    return result


def _dry_run(store: Any, frame: Any, options: dict[str, Any], as_json: bool) -> NoReturn:
    from entityframes import reports

    plan = store.plan(
        frame, absent=options["absent"], nulls=options["null_values"], on_duplicate=options["on_duplicate"]
    )
    report = reports.of_plan(plan, as_json)
    if as_json:
        print_exactly(report, json=True)
    else:
        say(report)
    sys.exit(1 if plan.counts["invalid"] else 0)


#: Files up to this size are read whole.
_SMALL = 512 << 20


def _check_failed_file(path: str | None, files: Sequence[str]) -> None:
    """Refuse a file for failed rows that could not be written, before anything is imported."""
    from entityframes.files import check_name, format_of

    if path is None:
        return
    check_name(path)
    format_of(path)
    if not Path(path).resolve().parent.is_dir():
        raise click.UsageError(f"--failed {path}: there is no such folder")
    if any(Path(path).resolve() == Path(file).resolve() for file in files):
        raise click.UsageError(f"--failed {path}: this is a file to be imported, give another name")


def _known(store: Any, entity_type: str | None) -> dict[str, Any]:
    """The dtypes that the store has for the metadata of a type, as long as it has entities of it."""
    from entityframes.fields import Fields

    if entity_type is None or store._engine.is_empty(entity_type):
        return {}
    return {name: field.output for name, field in Fields(store._engine).of(entity_type).items()}


def _tell_text(looks: Any, stored: Any) -> None:
    """Say which columns look like something else than the text that the store has of them."""
    import polars as pl

    for name, dtype in looks.items():
        if stored[name] == pl.String and dtype != pl.String:
            say(f"note: column {name!r} looks like {dtype} here, and stays text as it is in the store", err=True)


def _tell_odd_values(frame: Any, paths: Sequence[str], options: dict[str, Any], known: dict[str, Any]) -> None:
    """Say which new columns of a CSV are text for the sake of a few values: the type will keep that dtype."""
    import polars as pl

    from entityframes.files import format_of

    kinds = {options["file_format"] or format_of(path) for path in paths}
    metadata = frame.schema.get("metadata") if isinstance(frame, pl.DataFrame) else None
    if not kinds <= {"csv", "tsv"} or not isinstance(metadata, pl.Struct):
        return
    chosen = {*_names(options["text"]), *known}
    for name in (field.name for field in metadata.fields if field.dtype == pl.String and field.name not in chosen):
        values = frame["metadata"].struct.field(name).drop_nulls()
        odd = values.filter(values.cast(pl.Float64, strict=False).is_null())
        if 0 < 20 * len(odd) <= len(values):
            said = "1 value is no number" if len(odd) == 1 else f"{len(odd):,} values are no numbers"
            say(
                f"note: column {name!r} is text, because {said}, such as {odd[0][:40]!r}; a type keeps its dtypes "
                f"while it has entities: correct the file, or say --text {visible(name)}",
                err=True,
            )


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in text.split(",")] if text else []


def _scan(paths: Sequence[str], options: dict[str, Any], known: dict[str, Any]) -> Any:
    from entityframes.files import TextOptions, scan_files

    keys = _names(options["id_columns"]) if options["entity_type"] else ["entity_type", "id"]
    as_text = dict.fromkeys([*keys, *_names(options["content"]), *_names(options["text"])])
    text = TextOptions(
        columns=_names(options["columns"]) or None,
        separator=options["separator"],
        nulls=options["nulls"],
        text=list(as_text),
        text_if_there=[] if options["entity_type"] else ["content", "metadata"],
        known=known,
    )
    return scan_files(paths, options["file_format"], text)


def _entity_frame(rows: Any, options: dict[str, Any]) -> Any:
    import polars as pl

    import entityframes

    rows = rows.drop(ERROR_COLUMN, strict=False)
    if options["entity_type"] is None:
        return rows
    columns = _names(options["id_columns"])
    if not columns:
        raise click.UsageError("--type needs --id, the column with the ids")
    key: Any = columns[0] if len(columns) == 1 else pl.concat_str(columns, separator=options["id_separator"])
    metadata = _names(options["metadata"]) or None
    if metadata is None:
        # A key made of several columns keeps them: the parts of an id are of use on their own.
        metadata = [
            name
            for name in rows.collect_schema()
            if name not in (key if isinstance(key, str) else None, options["content"])
        ]
    return entityframes.entities(rows, options["entity_type"], id=key, content=options["content"], metadata=metadata)


def _write_failed(rows: Any, result: Any, path: str) -> None:
    """The failed input rows as they came, with the reason in a column that a later import leaves out."""
    import polars as pl

    from entityframes.files import write_file
    from entityframes.results import UNRESOLVED

    bad = result.outcomes.filter(pl.col("status").is_in(UNRESOLVED))
    reasons = bad.select(
        pl.col("row").alias(ROW_COLUMN), pl.coalesce("error", pl.col("status").cast(pl.String)).alias(ERROR_COLUMN)
    )
    numbered = rows.drop(ERROR_COLUMN, strict=False).with_row_index(ROW_COLUMN)
    given = numbered.filter(pl.col(ROW_COLUMN).is_in(bad["row"].implode())).collect()
    write_file(given.join(reasons, on=ROW_COLUMN, how="left", maintain_order="left").drop(ROW_COLUMN), path)
