"""The commands for entities, and for rows of tables: get, exists, delete, export; stats, verify, bench."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from entityframes.cli import tables
from entityframes.cli.common import (
    F,
    echo,
    given_options,
    json_option,
    open_store,
    print_exactly,
    print_exported,
    print_frame,
    print_origin,
    print_summary,
    progress_option,
    store_options,
)
from entityframes.cli.files import listed
from entityframes.visible import visible


def _ids_frame(entity_type: str, ids: Sequence[str], ids_file: str | None) -> Any:
    import polars as pl

    import entityframes
    from entityframes.files import TextOptions, read_files

    if bool(ids) == bool(ids_file):
        raise click.UsageError("give ids as arguments, or a file of them with --ids")
    if not ids_file:
        listed = [line for id in ids for line in (sys.stdin.read().splitlines() if id == "-" else [id])]
        return entityframes.ids(entity_type, listed)
    with tempfile.TemporaryDirectory(prefix="entityframes-") as spool:
        given = read_files([ids_file], None, TextOptions(), Path(spool))
        if "id" not in given.names:
            found = ", ".join(map(repr, given.names[:10]))
            raise click.UsageError(
                f"--ids {ids_file}: no column 'id'; the file has {found} in its first line. Put a line 'id' before the "
                f"ids, or pass a file of ids alone through standard input: entityframes ... - < {ids_file}"
            )
        given.choose(["id"])
        if given.unread.rows:
            raise click.UsageError(f"--ids {given.unread.rows[0].error}")
        return entityframes.ids(entity_type, given.scan().select("id").cast(pl.String).collect()["id"])


def _unknown_type(store: Any, entity_type: str) -> str | None:
    from entityframes.reading import lookup

    return lookup.unknown_type_message(store._engine, entity_type)


def _note_unknown_type(store: Any, entity_type: str) -> None:
    """Print a note if the store has no entities of a type."""
    if unknown := _unknown_type(store, entity_type):
        echo(f"note: {visible(unknown)}", err=True)


def _ids_arguments(command: F) -> F:
    command = progress_option(command)
    command = click.argument("ids", nargs=-1, metavar="[ID]...")(command)
    command = click.option(
        "--ids", "ids_file", type=click.Path(),
        help="File with a column id, or with the columns of the key of a table: CSV, Parquet, ...",
    )(command)  # fmt: skip
    command = click.option(
        "--key", multiple=True, metavar="TEXT",
        help="Columns by which rows of the table are found, comma-separated.  [default: its primary key]",
    )(command)  # fmt: skip
    command = click.option("--table", metavar="NAME", help="Table with these keys, instead of --type.")(command)
    return click.option("--type", "entity_type", help="Entity type of the ids.")(command)


def _check_table() -> None:
    """Check that nothing is given with --table that has a meaning for entities only."""
    if wrong := given_options(["entity_type", "namespace"]):
        raise click.UsageError(f"{', '.join(wrong)}: not with --table, which has no entities")


def _check_type(entity_type: str | None) -> None:
    if entity_type is None:
        raise click.UsageError("give the type of the ids with --type, or a table with --table")
    if wrong := given_options(["key"]):
        raise click.UsageError(f"{', '.join(wrong)}: only with --table")


@click.command()
@_ids_arguments
@json_option
@store_options
def get(
    entity_type: str, table: str | None, key: Sequence[str], ids: Sequence[str], ids_file: str | None, as_json: bool,
    url: str | None, namespace: str, progress: Any,
) -> None:  # fmt: skip
    """Print entities by id, or rows of a table by key, in the order given. Exit status 1 if some are missing.

    An ID of - reads ids from standard input. A key of several columns is given as values separated by commas.
    """
    if table:
        _check_table()
        tables.get(url, table, listed(key), ids, ids_file, as_json, progress)
    _check_type(entity_type)
    wanted = _ids_frame(entity_type, ids, ids_file)
    with open_store(url, namespace, read_only=True) as store:
        found = store.get(wanted, progress=progress)
        if not found["found"].any():
            _note_unknown_type(store, entity_type)
    print_frame(found, as_json)
    sys.exit(0 if found["found"].all() else 1)


@click.command()
@_ids_arguments
@json_option
@store_options
def exists(
    entity_type: str, table: str | None, key: Sequence[str], ids: Sequence[str], ids_file: str | None, as_json: bool,
    url: str | None, namespace: str, progress: Any,
) -> None:  # fmt: skip
    """Check which ids, or keys of a table, are stored. Exit status 1 if some are missing."""
    if table:
        _check_table()
        tables.exists(url, table, listed(key), ids, ids_file, as_json, progress)
    _check_type(entity_type)
    wanted = _ids_frame(entity_type, ids, ids_file)
    with open_store(url, namespace, read_only=True) as store:
        found = store.exists(wanted, progress=progress)
        if not found["exists"].any():
            _note_unknown_type(store, entity_type)
    print_frame(found, as_json)
    sys.exit(0 if found["exists"].all() else 1)


@click.command()
@_ids_arguments
@json_option
@store_options
def delete(
    entity_type: str, table: str | None, key: Sequence[str], ids: Sequence[str], ids_file: str | None, as_json: bool,
    url: str | None, namespace: str, progress: Any,
) -> None:  # fmt: skip
    """Delete entities by id, or rows of a table by key. Ids that are not stored are ignored."""
    if table:
        _check_table()
        tables.delete(url, table, listed(key), ids, ids_file, as_json, progress)
    _check_type(entity_type)
    wanted = _ids_frame(entity_type, ids, ids_file)
    with open_store(url, namespace) as store:
        result = store.delete(wanted, progress=progress)
        if not result.counts["deleted"]:
            _note_unknown_type(store, entity_type)
        print_summary(result, [f"{wanted.height:,} ids"], store.address, as_json)
    sys.exit(0 if result.ok else 1)


@click.command()
@click.argument("entity_type", metavar="[TYPE]", required=False)
@click.option("--table", metavar="NAME", help="Table to export, instead of a type.")
@click.option("--out", type=click.Path(dir_okay=False), help="File to write.  [default: standard output, as CSV]")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["csv", "tsv", "ndjson", "json", "parquet", "ipc"]),
    help="[default: from the file name]",
)
@progress_option
@json_option
@store_options
def export(
    entity_type: str | None, table: str | None, out: str | None, file_format: str | None, as_json: bool,
    url: str | None, namespace: str, progress: Any,
) -> None:  # fmt: skip
    """Write all entities of a type, with their metadata as typed columns, or all rows of a table.

    --json prints NDJSON.
    """
    if out is None and file_format in ("parquet", "ipc") and sys.stdout.isatty():
        raise click.UsageError(f"--format {file_format} cannot be printed to a terminal: give a file with --out")
    if table:
        _check_table()
        tables.export(url, table, out, file_format, as_json, progress)
        return
    if entity_type is None:
        raise click.UsageError("give the type of the entities, or --table")
    with open_store(url, namespace, read_only=True) as store:
        if unknown := _unknown_type(store, entity_type):
            raise click.ClickException(unknown)
        frame = store.read(entity_type, progress=progress)
    print_exported(frame, visible(entity_type), out, file_format, as_json)


@click.command()
@click.option(
    "--entities",
    "sizes",
    multiple=True,
    type=click.IntRange(min=1),
    help="Number of entities; may be repeated.  [default: 100 and 1000]",
)
@click.option("--latency-ms", default=0.0, help="Milliseconds added to each round trip (PostgreSQL).")
@click.option("--repeat", default=3, show_default=True, help="Number of measurements.")
@click.option("--chart", type=click.Path(dir_okay=False), help="Write a chart: .svg, .png or .html.")
@json_option
@store_options
def bench(
    sizes: Sequence[int], latency_ms: float, repeat: int, chart: str | None, as_json: bool, url: str | None,
    namespace: str,
) -> None:  # fmt: skip
    """Compare a loop over entities (N+1) with one batch, in a temporary namespace of the store's database.

    The namespace is removed afterwards; nothing else is changed.
    """
    from entityframes.bench.n_plus_one import n_plus_one, save_chart

    print_origin(url)
    measured = n_plus_one(url, sizes or (100, 1_000), latency_ms=latency_ms, repeat=repeat)
    if chart:
        save_chart(measured, chart)
    print_frame(measured, as_json)


@click.command()
@json_option
@store_options
def stats(as_json: bool, url: str | None, namespace: str) -> None:
    """Count entities by type: in total, embedded, due for embedding, and failed."""
    with open_store(url, namespace, read_only=True) as store:
        frame = store.stats()
    print_frame(frame, as_json)


@click.command()
@click.option("--repair", is_flag=True, help="Repair what can be derived from the stored data.")
@progress_option
@json_option
@store_options
def verify(repair: bool, progress: Any, as_json: bool, url: str | None, namespace: str) -> None:
    """Check hashes, ledger counts, jobs and recorded dtypes. Exit status 1 if inconsistencies remain."""
    from entityframes.cli import reports

    with open_store(url, namespace, read_only=not repair) as store:
        found = store.verify(repair=repair, progress=progress)
    report = reports.of_verification(found, as_json)
    if as_json:
        print_exactly(report, json=True)
    else:
        echo(report)
    sys.exit(0 if found["repaired"].all() else 1)
