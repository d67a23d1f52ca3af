"""What the commands share: options, opening the store, and how results and frames are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def store_options(command: F) -> F:
    """--store and --namespace."""
    command = click.option(
        "--store", "url", envvar="ENTITYFRAMES_URL", metavar="URL",
        help="Path of a DuckDB file or postgresql://user@host/database.  [default: entities.duckdb]",
    )(command)  # fmt: skip
    return click.option("--namespace", default="entityframes", show_default=True, help="Schema of the store's tables.")(
        command
    )


def json_option(command: F) -> F:
    """--json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")(command)


def open_store(url: str | None, namespace: str, *, read_only: bool = False) -> Any:
    """The store that the options name; it is not made for a command that only reads."""
    import entityframes

    return entityframes.connect(url, namespace=namespace, read_only=read_only)


def open_for_dry_run(url: str | None, namespace: str) -> Any:
    """The store that the options name, to be read only; where there is none yet, an empty one in its place."""
    import entityframes

    try:
        return open_store(url, namespace, read_only=True)
    except entityframes.ConnectError as error:
        if not error.missing:
            raise
        click.echo(f"note: {error}; this is what would become of an empty one", err=True)
        return entityframes.connect(":memory:")


def print_summary(result: Any, files: Sequence[str], store: str, as_json: bool, rest: str | None = None) -> None:
    """What became of the rows: JSON on standard output for scripts, else a few lines for a person.

    Args:
        rest: how to see the failed rows that are not shown.
    """
    if as_json:
        failures = result.failed.select("row", "entity_type", "id", "error_kind", "error", "sqlstate")
        report = {
            "ok": result.ok,
            "counts": result.counts,
            "batches": result.batches,
            "elapsed": round(result.elapsed, 3),
            "failed": failures.head(1_000).to_dicts(),
        }
        click.echo(json.dumps(report, ensure_ascii=False))
        return
    click.echo(f"{' '.join(files)} -> {store}")
    click.echo(repr(result).split("; first failure")[0].removeprefix("UpsertResult: ").removeprefix("DeleteResult: "))
    if result.counts["failed"]:
        print_failures(result.failed, rest)


def print_failures(failed: Any, rest: str | None = None, most: int = 10) -> None:
    """The first failed rows as a table on standard error; `rest` is how to see the others."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    title = "1 row failed" if failed.height == 1 else f"{failed.height:,} rows failed"
    click.echo(f"{title} (the first row of the input is row 0)", err=True)
    table = Table("row", "type", "id", "error")
    for row in failed.head(most).iter_rows(named=True):
        # Text, so that brackets in the data are not taken for markup.
        table.add_row(
            *(Text(str(row[name] if row[name] is not None else "")) for name in ("row", "entity_type", "id", "error"))
        )
    Console(stderr=True).print(table)
    if failed.height > most:
        click.echo(f"and {failed.height - most:,} more{f': {rest}' if rest else ''}", err=True)


def print_frame(frame: Any, as_json: bool, shown: Sequence[str] | None = None) -> None:
    """A frame as NDJSON for scripts, as CSV where standard output is no terminal, else as a table of what is shown."""
    import polars as pl

    if as_json:
        click.echo(frame.write_ndjson(), nl=False)
    elif not sys.stdout.isatty():
        click.echo(frame.write_csv(), nl=False)
    else:
        with pl.Config(tbl_rows=50, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True, fmt_str_lengths=60):
            click.echo(str(frame if shown is None else frame.select(shown)))
