"""The commands for entities, and for rows of tables: get, exists, delete, export; stats, verify."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from entityframes.cli import tables
from entityframes.cli.command import Command
from entityframes.cli.common import (
    F,
    condition,
    confirm_deletion,
    counted,
    given_options,
    json_option,
    open_store,
    print_exported,
    print_frame,
    print_summary,
    progress_option,
    scratch_folder,
    store_options,
)
from entityframes.cli.errors import UsageError
from entityframes.cli.files import check_output, listed
from entityframes.cli.output import echo, note, print_exactly, tell
from entityframes.visible import visible


def _ids_frame(entity_type: str, ids: Sequence[str], ids_file: str | None) -> Any:
    import polars as pl

    import entityframes
    from entityframes.files import TextOptions, read_files

    if bool(ids) == bool(ids_file):
        raise UsageError("no ids", advice="give them as arguments, or in a file with --ids")
    if not ids_file:
        listed = [line for id in ids for line in (sys.stdin.read().splitlines() if id == "-" else [id])]
        return entityframes.ids(entity_type, listed)
    with scratch_folder() as spool:
        given = read_files([ids_file], None, TextOptions(), spool)
        if "id" not in given.names:
            found = ", ".join(map(repr, given.names[:10]))
            raise UsageError(
                f"--ids {ids_file}: no column 'id'; the file has {found} in its first line",
                advice="put a line 'id' before the "
                f"ids, or pass a file of ids alone through standard input: entityframes ... - < {ids_file}",
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
        note(visible(unknown))


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
        raise UsageError("no type", advice="give that of the ids with --type, or a table with --table")
    if wrong := given_options(["key"]):
        raise click.UsageError(f"{', '.join(wrong)}: only with --table")


@click.command(
    cls=Command,
    examples="""
entityframes get --type person ada@example.org
entityframes get --type person ada@example.org alan@example.org --json
entityframes get --type person --ids people-ids.csv > people-found.csv
entityframes get --table people ada@example.org
""",
)
@_ids_arguments
@json_option
@store_options
def get(
    entity_type: str, table: str | None, key: Sequence[str], ids: Sequence[str], ids_file: str | None, as_json: bool,
    url: str | None, namespace: str, progress: Any,
) -> None:  # fmt: skip
    """Print entities by id, or rows of a table by key.

    They come in the order given, missing ones included. An ID of - reads ids from standard input. A key of several
    columns is given as values separated by commas. Exit status 1 if some are missing.
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
    if found.height == 1 and found["found"].all() and sys.stdout.isatty() and not as_json:
        from entityframes.cli.show import print_entity

        print_entity(found.row(0, named=True))
    else:
        print_frame(found, as_json, ["entity_type", "id", "found", "content", "metadata", "updated_at"])
    sys.exit(0 if found["found"].all() else 1)


@click.command(
    cls=Command,
    examples="""
entityframes exists --type person ada@example.org alan@example.org
cut -d, -f 1 people-ids.csv | tail -n +2 | entityframes exists --type person -
entityframes exists --table people ada@example.org
""",
)
@_ids_arguments
@json_option
@store_options
def exists(
    entity_type: str, table: str | None, key: Sequence[str], ids: Sequence[str], ids_file: str | None, as_json: bool,
    url: str | None, namespace: str, progress: Any,
) -> None:  # fmt: skip
    """Check which ids, or keys of a table, are stored.

    Exit status 1 if some are missing.
    """
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


@click.command(
    cls=Command,
    examples="""
entityframes delete --type person alan@example.org
entityframes delete --type person --ids people-ids.csv
entityframes delete --type person --where "country = 'US' AND born < 1910" --yes
# for a table, the condition is SQL of the database
entityframes delete --table people --where "country = 'US'" --yes
""",
)
@_ids_arguments
@click.option("--where", metavar="SQL", help="Delete what satisfies a condition on the columns, instead of ids.")
@click.option("--yes", is_flag=True, help="Delete what --where selects without asking.")
@json_option
@store_options
def delete(
    entity_type: str, table: str | None, key: Sequence[str], ids: Sequence[str], ids_file: str | None,
    where: str | None, yes: bool, as_json: bool, url: str | None, namespace: str,
    progress: Any,
) -> None:  # fmt: skip
    """Delete entities, or rows of a table, by id or by a condition.

    Ids that are not stored are ignored. With a condition, the command counts what it selects, and asks before anything
    is deleted; without a terminal it needs --yes. Exit status 1 if some could not be deleted, or if the answer is no.
    """
    if where is not None and (ids or ids_file):
        raise UsageError("--where selects what to delete", advice="leave out the ids")
    if where is None and yes:
        raise click.UsageError("--yes: only with --where")
    if table:
        _check_table()
        tables.delete(url, table, listed(key), ids, ids_file, where, yes, as_json, progress)
    _check_type(entity_type)
    wanted = None if where is not None else _ids_frame(entity_type, ids, ids_file)
    with open_store(url, namespace) as store:
        if where is not None:
            wanted = _selected(store, entity_type, where)
            of_type = f"of type {entity_type}"
            confirm_deletion(wanted.height, f"entity {of_type}", f"entities {of_type}", yes=yes)
        result = store.delete(wanted, progress=progress)
        if not result.counts["deleted"]:
            _note_unknown_type(store, entity_type)
        print_summary(result, [counted(result.rows, "id")], store.address, as_json)
    sys.exit(0 if result.ok else 1)


def _selected(store: Any, entity_type: str, where: str) -> Any:
    """The ids of a type that satisfy a condition.

    Raises:
        click.ClickException: the store has no entities of the type.
    """
    import entityframes

    if unknown := _unknown_type(store, entity_type):
        raise click.ClickException(unknown)
    return entityframes.ids(entity_type, store.scan(entity_type).filter(condition(where)).select("id").collect()["id"])


@click.command(
    cls=Command,
    examples="""
entityframes export person --out people.parquet
entityframes export person --format csv | head -n 3
entityframes export --table people --out people.ndjson.gz
""",
)
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
    """Write all entities of a type, or all rows of a table, to a file.

    The metadata of entities are typed columns. --json prints NDJSON.
    """
    if out is None and file_format in ("parquet", "ipc") and sys.stdout.isatty():
        raise UsageError(f"--format {file_format} cannot be printed to a terminal", advice="give a file with --out")
    if out:
        check_output("--out", out, file_format)
    if table:
        _check_table()
        tables.export(url, table, out, file_format, as_json, progress)
        return
    if entity_type is None:
        raise UsageError("no type", advice="give that of the entities, or a table with --table")
    with open_store(url, namespace, read_only=True) as store:
        if unknown := _unknown_type(store, entity_type):
            raise click.ClickException(unknown)
        frame = store.read(entity_type, progress=progress)
    print_exported(frame, visible(entity_type), out, file_format, as_json)


@click.command(
    cls=Command,
    examples="""
entityframes stats
entityframes stats --json
""",
)
@json_option
@store_options
def stats(as_json: bool, url: str | None, namespace: str) -> None:
    """Count entities by type, and those that are embedded.

    Due are those whose content has no vector yet, failed those whose content the embedder refused.
    """
    with open_store(url, namespace, read_only=True) as store:
        frame = store.stats()
    print_frame(frame, as_json, empty="the store is empty")


@click.command(
    cls=Command,
    examples="""
entityframes verify
entityframes verify --repair
""",
)
@click.option("--repair", is_flag=True, help="Repair what can be derived from the stored data.")
@progress_option
@json_option
@store_options
def verify(repair: bool, progress: Any, as_json: bool, url: str | None, namespace: str) -> None:
    """Check that the store is consistent, and repair it.

    It checks hashes, ledger counts, jobs and recorded dtypes. Exit status 1 if inconsistencies remain.
    """
    from entityframes.cli import reports

    with open_store(url, namespace, read_only=not repair) as store:
        found = store.verify(repair=repair, progress=progress)
    report = reports.of_verification(found, as_json)
    if as_json:
        print_exactly(report, json=True)
    elif found.is_empty():
        tell(report)
    else:
        echo(report)
    sys.exit(0 if found["repaired"].all() else 1)
