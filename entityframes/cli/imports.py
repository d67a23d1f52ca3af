"""The import command: imports files of rows as entities, or into a table."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from entityframes.cli import tables
from entityframes.cli.command import Command, paths
from entityframes.cli.common import (
    given_options,
    json_option,
    open_for_dry_run,
    open_store,
    print_summary,
    progress_option,
    scratch_folder,
    store_options,
)
from entityframes.cli.errors import UsageError
from entityframes.cli.files import (
    ERROR_COLUMN,
    RAW_COLUMN,
    check_failed_file,
    chosen,
    nothing_imported,
    of_files,
    read,
    report_plan,
    text_options,
    write_failed,
)
from entityframes.cli.output import echo, note, tell
from entityframes.visible import visible

#: Settings of an option that takes names: comma-separated, or given several times.
_LISTING: dict[str, Any] = {"multiple": True, "metavar": "TEXT"}


#: The options that have a meaning with --mirror only.
_MIRROR = ("scope", "max_delete", "soft_delete")

#: The options that have a meaning for entities or for tables only.
_ENTITIES = ("entity_type", "id_columns", "id_separator", "content", "metadata", "absent", "no_embed", "namespace")
_TABLES = ("key", "only", "ignore", "insert_only", "create", "mirror", *_MIRROR)

#: The options for reading files.
_FILES = (
    "file_format", "columns", "separator", "quote", "no_quote", "escape", "encoding", "decimal_comma", "nulls", "text",
    "numbers",
)  # fmt: skip


@click.command(
    "import",
    cls=Command,
    sections={"Entities": _ENTITIES[:-1], "Tables": ("table", *_TABLES), "Files": _FILES},
    examples="""
# the columns that are not named are kept as metadata
entityframes import people.csv --type person --id email --content bio
# show what would be done
entityframes import people.csv --type person --id email --dry-run
# a key of several columns, from standard input
zcat routes.csv.gz | entityframes import - --format csv --type route --id airline,source
# a file without a header line, with its own sign for null
entityframes import airports.dat --type airport --id id --columns id,name,iata --null '\\N'
# correct the failed rows in bad.csv, and import that
entityframes import people.csv --type person --id email --failed bad.csv
# a table of your own, created at first
entityframes import people.csv --table people --create --key email
entityframes import people.csv --table people --nulls keep
""",
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", shell_complete=paths("file"))
@click.option(
    "--type",
    "entity_type",
    help="Entity type of every row; without it, and without --table, the file needs the columns entity_type and id, "
    "and may have content and metadata.",
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
@click.option("--table", metavar="NAME", help="Import into this table, such as sales.customers, instead of a store.")
@click.option(
    "--key",
    help="Columns by which rows of the table are found, comma-separated.  [default: its primary key]",
    **_LISTING,
)
@click.option("--only", help="Columns of the file to write to the table, comma-separated.  [default: all]", **_LISTING)
@click.option(
    "--ignore",
    help="Columns of the table that are written, but do not count as a difference (a load time), comma-separated.",
    **_LISTING,
)
@click.option("--insert-only", is_flag=True, help="Leave rows alone that are in the table already.")
@click.option(
    "--create", is_flag=True, help="Create the table if it does not exist, with the dtypes of the file and --key."
)
@click.option("--mirror", is_flag=True, help="Then delete the rows of the table that the files do not have.")
@click.option("--scope", metavar="SQL", help="Condition of the rows that --mirror may delete; t is the table.")
@click.option(
    "--max-delete",
    type=click.FloatRange(0),
    default=0.2,
    show_default=True,
    help="Maximum number of rows that --mirror deletes: below 1 a share of the stored rows, else a number.",
)
@click.option(
    "--soft-delete", metavar="COLUMN", help="Column in which --mirror sets the time instead of deleting a row."
)
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
@progress_option
@json_option
@store_options
def import_command(files: Sequence[str], as_json: bool, url: str | None, namespace: str, **options: Any) -> None:
    """Import rows of files as entities, or into a table.

    The files are CSV, TSV, NDJSON, JSON, Parquet or Arrow IPC, also compressed; FILE may also be a pattern, or - for
    standard input. Rows that are already stored are skipped: to resume an interrupted import, run it again. Exit status
    1 if some rows failed.
    """
    from entityframes.files import read_files

    _check_options(options)
    check_failed_file(options["failed_file"], files)
    with scratch_folder() as spool:
        # Errors in the files are raised before a store is created.
        with nothing_imported():
            given = read_files(files, options["file_format"], text_options(options), spool)
        if options["table"]:
            rows, result = tables.import_rows(given, files, url, as_json, options)
        else:
            rows, result = _import_entities(given, files, url, namespace, as_json, options)
        if options["failed_file"] and not result.ok:
            write_failed(rows, result, given, options["failed_file"])
            tell(
                f"wrote the failed rows to {visible(options['failed_file'])}: correct them and import that file",
                err=True,
            )
    sys.exit(0 if result.ok else 1)


def _check_options(options: dict[str, Any]) -> None:
    """Check that the options go together.

    Raises:
        click.UsageError: they do not.
    """
    if options["table"]:
        if wrong := given_options(_ENTITIES):
            raise click.UsageError(f"{', '.join(wrong)}: not with --table, which has no entities")
        if not options["mirror"] and (wrong := given_options(_MIRROR)):
            raise click.UsageError(f"{', '.join(wrong)}: only with --mirror")
        if options["mirror"] and options["insert_only"]:
            raise click.UsageError("--mirror and --insert-only exclude each other")
        return
    if wrong := given_options(_TABLES):
        raise click.UsageError(f"{', '.join(wrong)}: only with --table")
    if options["entity_type"] is None and options["id_columns"]:
        raise click.UsageError("--id needs --type, the entity type of every row")
    if options["entity_type"] is not None and not options["id_columns"]:
        raise click.UsageError("--type needs --id, the column with the ids")


def _import_entities(
    given: Any, files: Sequence[str], url: str | None, namespace: str, as_json: bool, options: dict[str, Any]
) -> tuple[Any, Any]:
    """Import the rows of files as entities; the rows as they are in the files, and the result."""
    from entityframes.files import check_writable

    with nothing_imported():
        _name_columns(given, options)
        rows = given.scan()
        frame = read(_entity_frame(rows, given, options), given)
    with (open_for_dry_run if options["dry_run"] else open_store)(url, namespace) as store:
        if known := _known(store, options["entity_type"]):
            rows = given.scan(known)
            frame = read(_entity_frame(rows, given, options), given)
        if options["failed_file"]:
            check_writable(rows.collect_schema(), options["failed_file"])
        for line in given.notes.lines():
            note(visible(line))
        with _named(files):
            return rows, _import(store, frame, files, as_json, options, given)


@contextmanager
def _named(files: Sequence[str]) -> Iterator[None]:
    """Add the names of the files, and the options to use, to a SchemaError of the store."""
    from entityframes.errors import SchemaError

    try:
        yield
    except SchemaError as error:
        names = ", ".join(files[:3]) + (", ..." if len(files) > 3 else "")
        advice = error.advice
        if "other dtypes" in error.happened:
            advice = "choose dtypes with --text and --number, columns with --metadata, or another --type"
        raise SchemaError(f"{names}: {error.happened}", advice=advice) from error


def _name_columns(given: Any, options: dict[str, Any]) -> None:
    """Replace the values of options by the columns that they refer to, and set their dtypes."""
    names = given.names
    for option in ("id_columns", "metadata", "text", "numbers"):
        options[option] = chosen(options[option], names)
    keys = options["id_columns"] if options["entity_type"] else ["entity_type", "id", "content"]
    if options["entity_type"] is None and given.kind in ("csv", "tsv"):
        keys = [*keys, "metadata"]
    if options["entity_type"] is None:
        missing = [name for name in keys[:2] if name not in names]
        if missing:
            raise UsageError(
                f"the file has no column {', '.join(map(repr, missing))}",
                advice="give the type of its rows, and the "
                "column with their ids: --type TYPE --id COLUMN [--content COLUMN]",
            )
        keys = [name for name in keys if name in names]
    text = [*keys, *([options["content"]] if options["content"] else []), *options["text"]]
    given.choose(list(dict.fromkeys(text)), options["numbers"], options["metadata"])


def _import(store: Any, frame: Any, files: Sequence[str], as_json: bool, options: dict[str, Any], given: Any) -> Any:
    """Upsert an entity frame, and print the result for the files."""
    known = {"entity_type": options["entity_type"]}
    if options["dry_run"]:
        policies = {"absent": options["absent"], "nulls": options["null_values"]}
        plan = store.plan(frame, on_duplicate=options["on_duplicate"], progress=options["progress"], **policies)
        report_plan(plan, given, as_json)
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
        print_summary(of_files(store.last_result, given, known), files, store.address, as_json, rest)
        echo("note: run the same command again to resume: rows that are already stored are skipped", err=True)
        raise
    parts = options["id_columns"]
    some_null = len(parts) > 1 and (result.failed["error"] == "id is null").any()
    result = of_files(result, given, known)
    print_summary(result, files, store.address, as_json, rest, given.notes.all())
    if some_null:
        note(f"an id is null if any of its parts is null: {', '.join(map(visible, parts))}")
    return result


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
    from entityframes.frames.schema import did_you_mean

    found = ", ".join(map(repr, names[:50])) + (", ..." if len(names) > 50 else "")
    return SchemaError(
        f"no column {', '.join(map(repr, missing))}; the file has {found}", advice=did_you_mean(missing, names)
    )
