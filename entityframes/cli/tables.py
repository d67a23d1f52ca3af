"""Tables on the command line: imports, lookups by key, deletions and exports, and the list of all tables."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import click

from entityframes.cli.command import Command
from entityframes.cli.common import (
    confirm_deletion,
    counted,
    json_option,
    print_exported,
    print_frame,
    print_origin,
    print_summary,
    scratch_folder,
    url_option,
)
from entityframes.cli.errors import UsageError
from entityframes.cli.files import ERROR_COLUMN, RAW_COLUMN, chosen, of_files, read, report_plan
from entityframes.cli.output import echo, note
from entityframes.visible import visible


def _open(url: str | None, *, read_only: bool = False) -> Any:
    """Open a database; no store is created."""
    from entityframes.engines import open_tables
    from entityframes.engines.url import parse_url

    print_origin(url)
    return open_tables(parse_url(url), None, read_only=read_only)


def open_table(url: str | None, name: str, key: Sequence[str], *, read_only: bool = False) -> Any:
    """Open a table; nothing is created."""
    from entityframes.tables import Table

    engine = _open(url, read_only=read_only)
    try:
        with _messages():
            return Table(engine, name, list(key) or None, owner=True)
    except BaseException:
        engine.database.close()
        raise


@contextmanager
def _messages(files: Sequence[str] = ()) -> Iterator[None]:
    """Add the names of files to a SchemaError."""
    from entityframes.errors import SchemaError

    try:
        yield
    except SchemaError as error:
        names = ", ".join(files[:3]) + (", ..." if len(files) > 3 else "")
        error.restate(f"{names}: {error.happened}" if names else error.happened, error.advice)
        raise


def import_rows(
    given: Any, files: Sequence[str], url: str | None, as_json: bool, options: dict[str, Any]
) -> tuple[Any, Any]:
    """Import the rows of files into a table.

    Args:
        given: the rows of the files.
        files: the files, for messages.
        url: the address of the database.
        as_json: whether to print JSON.
        options: the options of the import command.

    Returns:
        The rows as they are in the files, and the result.
    """
    from entityframes.files import check_writable

    for option in ("key", "only", "ignore", "text", "numbers"):
        options[option] = chosen(options[option], given.names)
    columns = options["only"] or [name for name in given.names if name not in (ERROR_COLUMN, RAW_COLUMN)]
    given.choose(options["text"], options["numbers"], columns)
    with _opened(given, url, columns, options) as table:
        rows = _as_texts(given, table, columns)
        frame = read(_with_points(rows, table) if options["decimal_comma"] else rows, given)
        if options["failed_file"]:
            check_writable(rows.collect_schema(), options["failed_file"])
        _print_notes(given)
        with _messages(files):
            return rows, _write(table, frame, files, as_json, options, given)


def _opened(given: Any, url: str | None, columns: Sequence[str], options: dict[str, Any]) -> Any:
    """The table; with --create it is created if it does not exist, in a dry run in memory."""
    from entityframes.engines.tables import NoTableError, parse_name, quoted
    from entityframes.errors import ConnectError
    from entityframes.tables import create_table

    name, dry_run = options["table"], options["dry_run"]
    try:
        return open_table(url, name, options["key"], read_only=dry_run)
    except (NoTableError, ConnectError) as error:
        if not options["create"] or not (isinstance(error, NoTableError) or error.missing):
            raise
    if not options["key"]:
        raise UsageError(
            f"there is no table {name}, and --create needs a primary key", advice="name its columns with --key"
        )
    schema = given.scan().select(columns).collect_schema()
    _print_notes(given)
    if dry_run:
        url, name = ":memory:", quoted(parse_name(name)[-1][0])
    table = create_table(url, name, schema, key=options["key"])
    described = table.columns.head(50).select("column", "sql_type").rows()
    shown = ", ".join(f"{visible(column)} {sql_type}" for column, sql_type in described)
    more = ", ..." if len(schema) > len(described) else ""
    if dry_run:
        created = f"{visible(options['table'])} would be created with {shown}{more}; the dry run assumes an empty table"
    else:
        created = f"created {visible(table.name)} with {shown}{more}"
    note(created)
    return table


def _print_notes(given: Any) -> None:
    for line in given.notes.lines():
        note(visible(line))


def _as_texts(given: Any, table: Any, columns: Sequence[str]) -> Any:
    """The rows of the files. Values of CSV and JSON are text, as in the file, which the upsert converts by value."""
    known = table._relation.by_name
    nested = ("array", "vector", "struct", "map") if given.kind in ("json", "ndjson") else ()
    if given.kind not in ("parquet", "ipc"):
        texts = [name for name in columns if name not in known or known[name].family not in nested]
        given.choose(texts, (), columns)
    return given.scan().select(columns)


def _with_points(rows: Any, table: Any) -> Any:
    """The rows with decimal points instead of decimal commas in the columns that are numbers in the table."""
    import polars as pl

    known = table._relation.by_name
    texts = [name for name, dtype in rows.collect_schema().items() if dtype == pl.String and name in known]
    numbers = [name for name in texts if known[name].family in ("integer", "float", "decimal")]
    return rows.with_columns(pl.col(numbers).str.replace(r"^(\s*[+-]?\d*),(\d+\s*)$", "${1}.${2}"))


def _write(table: Any, frame: Any, files: Sequence[str], as_json: bool, options: dict[str, Any], given: Any) -> Any:
    """Upsert the rows, and print the result for the files; in a dry run, print the plan and exit."""
    policies = {"nulls": options["null_values"], "ignore": options["ignore"], "on_duplicate": options["on_duplicate"]}
    write, planned = table.upsert, {}
    if options["mirror"]:
        _check_all_read(given)
        policies |= {"scope": options["scope"], "soft_delete": options["soft_delete"]}
        write, planned = partial(table.mirror, max_delete=options["max_delete"]), {"mirror": True}
    else:
        policies["on_match"] = "skip" if options["insert_only"] else "update"
    if options["dry_run"]:
        report_plan(table.plan(frame, progress=options["progress"], **policies, **planned), given, as_json)
    target = _address(table)
    rest = None if options["failed_file"] else "write them all with --failed FILE"
    run = {name: options[name] for name in ("batch_size", "on_error", "progress")}
    try:
        result = write(frame, **policies, **run)
    except KeyboardInterrupt:
        print_summary(of_files(table.last_result, given, {}), files, target, as_json, rest)
        echo("note: run the same command again to resume: rows that are already stored are skipped", err=True)
        raise
    result = of_files(result, given, {})
    print_summary(result, files, target, as_json, rest, given.notes.all())
    return result


def _check_all_read(given: Any) -> None:
    """Check that all rows of the files could be read: a mirror would delete the rows that they stand for.

    Raises:
        click.ClickException: naming the first row that could not.
    """
    if unread := given.unread.rows:
        raise click.ClickException(
            f"nothing was imported: {len(unread):,} rows cannot be read, so that --mirror would delete what they stand "
            f"for: {visible(unread[0].error)}"
        )


def _address(table: Any) -> str:
    """A table and its database, for display."""
    return f"{table.name} in {table._engine.database.address}"


def get(
    url: str | None, name: str, key: Sequence[str], keys: Sequence[str], file: str | None, as_json: bool, progress: Any
) -> None:
    """Print rows by key, and exit with status 1 if some are missing."""
    with open_table(url, name, key, read_only=True) as table:
        found = table.get(_key_frame(table, keys, file), progress=progress)
    if found.height == 1 and sys.stdout.isatty() and not as_json:
        from entityframes.cli.show import print_record

        print_record(found.row(0, named=True))
    else:
        print_frame(found, as_json)
    flag = found.columns[len(table.key)]
    sys.exit(0 if found[flag].all() else 1)


def exists(
    url: str | None, name: str, key: Sequence[str], keys: Sequence[str], file: str | None, as_json: bool, progress: Any
) -> None:
    """Print which keys are stored, and exit with status 1 if some are missing."""
    with open_table(url, name, key, read_only=True) as table:
        found = table.exists(_key_frame(table, keys, file), progress=progress)
    print_frame(found, as_json)
    sys.exit(0 if found["exists"].all() else 1)


def delete(
    url: str | None, name: str, key: Sequence[str], keys: Sequence[str], file: str | None, where: str | None,
    yes: bool, as_json: bool, progress: Any,
) -> None:  # fmt: skip
    """Delete rows by key or by a condition, and exit with status 1 if some cannot be deleted."""
    with open_table(url, name, key) as table:
        if where is None:
            wanted = _key_frame(table, keys, file)
        else:
            wanted = _selected(table, where)
            confirm_deletion(wanted.height, f"row of {table.name}", f"rows of {table.name}", yes=yes)
        result = table.delete(wanted, progress=progress)
        print_summary(result, [counted(wanted.height, "key")], _address(table), as_json)
    sys.exit(0 if result.ok else 1)


def _selected(table: Any, where: str) -> Any:
    """The keys of the rows that satisfy a condition in SQL of the database, in which t is the table."""
    import polars as pl

    from entityframes.interrupt import Interrupt
    from entityframes.reading import tables as reading

    key = [table._relation[name] for name in table.key]
    chunks = reading.scan(table._engine, table._relation, key, where, Interrupt())
    return pl.concat([pl.DataFrame(schema={column.name: column.dtype for column in key}), *chunks])


def export(url: str | None, name: str, out: str | None, file_format: str | None, as_json: bool, progress: Any) -> None:
    """Write all rows of a table, ordered by its primary key if it has one."""
    import polars as pl

    from entityframes.interrupt import Interrupt
    from entityframes.progress import Reporter
    from entityframes.reading import tables as reading

    engine = _open(url, read_only=True)
    try:
        with _messages():
            table = engine.describe(name)
        chunks = []
        with Reporter(progress, what="export") as reporter:
            for chunk in reading.scan(engine, table, table.columns, None, Interrupt()):
                chunks.append(chunk)
                reporter.advance(chunk.height)
    finally:
        engine.database.close()
    schema = {column.name: column.dtype for column in table.columns}
    rows = pl.concat([pl.DataFrame(schema=schema), *chunks])
    key = [name for name in (*table.unique, ())[0] if not schema[name].is_nested()]
    ordered = rows.sort(key, maintain_order=True) if key else rows
    print_exported(ordered, visible(table.name), out, file_format, as_json)


def _key_frame(table: Any, keys: Sequence[str], file: str | None) -> Any:
    """The keys given as arguments, through standard input, or by a file with the columns of the key."""
    import csv

    import polars as pl

    from entityframes.files import TextOptions, read_files

    if bool(keys) == bool(file):
        raise UsageError("no keys", advice="give them as arguments, or in a file with --ids")
    if file:
        with scratch_folder() as spool:
            given = read_files([file], None, TextOptions(), spool)
            given.choose(table.key)
            if given.unread.rows:
                raise click.UsageError(f"--ids {given.unread.rows[0].error}")
            return given.scan().select(table.key).collect()
    listed = [line for key in keys for line in (sys.stdin.read().splitlines() if key == "-" else [key])]
    if len(table.key) == 1:
        return pl.DataFrame({table.key[0]: listed}, {table.key[0]: pl.String})
    parts = list(csv.reader(listed))
    if wrong := next((line for line, part in zip(listed, parts, strict=True) if len(part) != len(table.key)), None):
        raise click.UsageError(f"{wrong!r}: the key of {table.name} has the parts {','.join(table.key)}")
    return pl.DataFrame(parts, dict.fromkeys(table.key, pl.String), orient="row")


@click.command(
    "tables",
    cls=Command,
    examples="""
entityframes tables
entityframes tables --json
""",
)
@json_option
@url_option
def tables(as_json: bool, url: str | None) -> None:
    """List the tables of the database with their primary keys.

    The rows of large tables are estimated, which the column exact shows. The tables of stores are not listed.
    """
    import polars as pl

    from entityframes.reading import tables as reading

    engine = _open(url, read_only=True)
    try:
        listed = reading.tables(engine)
    finally:
        engine.database.close()
    if not as_json:
        listed = listed.with_columns(pl.col("key").list.join(","))
    if sys.stdout.isatty():
        rows = [_about(*row) for row in listed.select("rows", "exact").iter_rows()]
        listed = listed.select("table", "key", pl.Series("rows", rows, dtype=pl.String))
    print_frame(listed, as_json, empty="no tables")


def _about(rows: int | None, exact: bool) -> str:
    """The number of rows of a table, for people."""
    if rows is None:
        return "not known yet"
    return f"{rows:,}" if exact else f"about {rows:,}"
