"""The entity commands: get, exists, delete, export, stats, verify, bench."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from entityframes.cli.common import (
    F,
    echo,
    json_option,
    open_store,
    print_exactly,
    print_frame,
    print_origin,
    print_summary,
    store_options,
)
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
    command = click.argument("ids", nargs=-1, metavar="[ID]...")(command)
    command = click.option("--ids", "ids_file", type=click.Path(), help="File with a column id: CSV, Parquet, ...")(
        command
    )
    return click.option("--type", "entity_type", required=True, help="Entity type of the ids.")(command)


@click.command()
@_ids_arguments
@json_option
@store_options
def get(
    entity_type: str, ids: Sequence[str], ids_file: str | None, as_json: bool, url: str | None, namespace: str
) -> None:
    """Print entities by id, in the order given; - reads ids from standard input. Exit status 1 if some are missing."""
    wanted = _ids_frame(entity_type, ids, ids_file)
    with open_store(url, namespace, read_only=True) as store:
        found = store.get(wanted)
        if not found["found"].any():
            _note_unknown_type(store, entity_type)
    print_frame(found, as_json)
    sys.exit(0 if found["found"].all() else 1)


@click.command()
@_ids_arguments
@json_option
@store_options
def exists(
    entity_type: str, ids: Sequence[str], ids_file: str | None, as_json: bool, url: str | None, namespace: str
) -> None:
    """Check which ids are stored. Exit status 1 if some are missing."""
    wanted = _ids_frame(entity_type, ids, ids_file)
    with open_store(url, namespace, read_only=True) as store:
        found = store.exists(wanted)
        if not found["exists"].any():
            _note_unknown_type(store, entity_type)
    print_frame(found, as_json)
    sys.exit(0 if found["exists"].all() else 1)


@click.command()
@_ids_arguments
@json_option
@store_options
def delete(
    entity_type: str, ids: Sequence[str], ids_file: str | None, as_json: bool, url: str | None, namespace: str
) -> None:
    """Delete entities by id. Ids that are not stored are ignored."""
    wanted = _ids_frame(entity_type, ids, ids_file)
    with open_store(url, namespace) as store:
        result = store.delete(wanted)
        if not result.counts["deleted"]:
            _note_unknown_type(store, entity_type)
        print_summary(result, [f"{wanted.height:,} ids"], store.address, as_json)
    sys.exit(0 if result.ok else 1)


@click.command()
@click.argument("entity_type", metavar="TYPE")
@click.option("--out", type=click.Path(dir_okay=False), help="File to write.  [default: standard output, as CSV]")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["csv", "tsv", "ndjson", "json", "parquet", "ipc"]),
    help="[default: from the file name]",
)
@json_option
@store_options
def export(
    entity_type: str, out: str | None, file_format: str | None, as_json: bool, url: str | None, namespace: str
) -> None:
    """Write all entities of a type with their metadata as typed columns; --json prints NDJSON."""
    from entityframes.files import check_writable, nonfinite, write_file

    if out is None and file_format in ("parquet", "ipc") and sys.stdout.isatty():
        raise click.UsageError(f"--format {file_format} cannot be printed to a terminal: give a file with --out")
    with open_store(url, namespace, read_only=True) as store:
        if unknown := _unknown_type(store, entity_type):
            raise click.ClickException(unknown)
        frame = store.read(entity_type)
    kind = file_format or ("csv" if not as_json else "ndjson")
    if check_writable(frame.schema, out or f"standard output.{kind}", file_format) in ("ndjson", "json"):
        for name in nonfinite(frame):
            note = f"column {name!r} contains NaN or infinities, which JSON cannot represent: they are written as null"
            echo(f"note: {visible(note)}", err=True)
    if out:
        write_file(frame, out, file_format)
        echo(f"{frame.height:,} rows of {visible(entity_type)} -> {visible(out)}", err=True)
    elif as_json or file_format == "ndjson":
        print_frame(frame, True)
    else:
        with tempfile.TemporaryDirectory(prefix="entityframes-") as folder:
            path = Path(folder) / "out"
            write_file(frame, path, file_format or "csv")
            if sys.stdout.isatty():
                print_exactly(path.read_text("utf-8"))
            else:
                sys.stdout.buffer.write(path.read_bytes())


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
@json_option
@store_options
def verify(repair: bool, as_json: bool, url: str | None, namespace: str) -> None:
    """Check hashes, ledger counts, jobs and recorded dtypes. Exit status 1 if inconsistencies remain."""
    from entityframes.cli import reports

    with open_store(url, namespace, read_only=not repair) as store:
        found = store.verify(repair=repair)
    report = reports.of_verification(found, as_json)
    if as_json:
        print_exactly(report, json=True)
    else:
        echo(report)
    sys.exit(0 if found["repaired"].all() else 1)
