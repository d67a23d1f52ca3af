"""The command line: thin, one function a command. Exit status 0, 1 (some rows failed) or 2 (could not run)."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

#: A column that --failed adds and that import leaves out again.
ERROR_COLUMN = "entityframes_error"


def _store_options(command: F) -> F:
    command = click.option(
        "--store", "url", envvar="ENTITYFRAMES_URL", metavar="URL",
        help="Path of a DuckDB file or postgresql://user@host/database.  [default: entities.duckdb]",
    )(command)  # fmt: skip
    return click.option("--namespace", default="entityframes", show_default=True, help="Schema of the store's tables.")(
        command
    )


def _json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")(command)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="entityframes")
def cli() -> None:
    """Bulk work on entities: import, look up, export and delete them by the thousands.

    \b
    entityframes import people.csv --type person --id email
    entityframes get --type person ada@example.org
    entityframes export person --out people.parquet
    """


def main() -> None:
    """Run the command line and leave with its exit status."""
    with _told():
        sys.exit(cli(standalone_mode=False) or 0)


@contextmanager
def _told() -> Iterator[None]:
    """Every expected error is one line on standard error and exit status 2, never a traceback."""
    import polars as pl

    from entityframes.errors import EntityFramesError

    try:
        yield
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (EntityFramesError, pl.exceptions.PolarsError, OSError, ValueError) as error:
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()
            sys.exit(0)
        click.echo(f"entityframes: {' '.join(str(error).split()) or type(error).__name__}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("entityframes: interrupted", err=True)
        sys.exit(130)


def _open(url: str | None, namespace: str) -> Any:
    import entityframes

    return entityframes.connect(url, namespace=namespace)


@cli.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--type",
    "entity_type",
    help="Entity type of every row; without it the file needs the columns entity_type, id and content.",
)
@click.option(
    "--id", "id_columns", help="Column with the ids, or several with commas between, joined by --id-separator."
)
@click.option(
    "--id-separator", default="|", show_default=True, help="Stands between the parts of an id made of several columns."
)
@click.option("--content", help="Column with the text of each entity.  [default: none]")
@click.option("--metadata", help="Columns to keep as metadata, with commas between.  [default: all others]")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["csv", "tsv", "ndjson", "parquet", "ipc"]),
    help="[default: by the file's name]",
)
@click.option("--columns", help="Names of the columns of a CSV without a header line, with commas between.")
@click.option("--separator", help="Stands between the values of a CSV.")
@click.option(
    "--null", "nulls", multiple=True, metavar="TEXT", help=r"Text that means null, such as \N; may be repeated."
)
@click.option(
    "--text", help="CSV columns to keep as text whatever they look like (leading zeros), with commas between."
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
@_json_option
@_store_options
def import_command(files: Sequence[str], as_json: bool, url: str | None, namespace: str, **options: Any) -> None:
    """Import rows as entities: CSV, TSV, NDJSON, Parquet or Arrow IPC, also .gz and .zst, patterns, or - for stdin.

    Rows that exist and are equal are left alone, so an import that was stopped is simply run again.

    \b
    entityframes import airports.dat --type airport --id id --content name \\
        --columns id,name,city,country,iata --null '\\N'
    entityframes import routes.csv --type route --id airline,source,destination
    """
    with tempfile.TemporaryDirectory(prefix="entityframes-") as spool:
        rows = _scan(files, Path(spool), options)
        frame = _entity_frame(rows, options)
        # A file that fits is read at once: repeated keys are then found in all of it, not only within a batch.
        if _small(files):
            frame = frame.collect()
        with _open(url, namespace) as store:
            if options["dry_run"]:
                _dry_run(store, frame, options["on_duplicate"], as_json)
            try:
                result = store.upsert(
                    frame,
                    batch_size=options["batch_size"],
                    embed=not options["no_embed"],
                    on_duplicate=options["on_duplicate"],
                    on_error=options["on_error"],
                    progress=options["progress"],
                )
            except KeyboardInterrupt:
                _summary(store.last_result, files, store.address, as_json)
                raise
            _summary(result, files, store.address, as_json)
        if options["failed_file"] and not result.ok:
            _write_failed(rows, result, options["failed_file"])
            click.echo(
                f"wrote the failed rows to {options['failed_file']}: correct them and import that file", err=True
            )
    sys.exit(0 if result.ok else 1)


def _dry_run(store: Any, frame: Any, on_duplicate: str, as_json: bool) -> NoReturn:
    from entityframes import reports

    plan = store.plan(frame, on_duplicate=on_duplicate)
    click.echo(reports.of_plan(plan, as_json))
    sys.exit(1 if plan.counts["invalid"] else 0)


#: Files up to this size are read whole.
_SMALL = 512 << 20


def _small(files: Sequence[str]) -> bool:
    from entityframes.files import _expanded

    if "-" in files:
        return False
    return sum(Path(path).stat().st_size for name in files for path in _expanded(name, None)) <= _SMALL


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in text.split(",")] if text else []


def _scan(files: Sequence[str], spool: Path, options: dict[str, Any]) -> Any:
    from entityframes.files import TextOptions, scan_files

    keys = _names(options["id_columns"]) if options["entity_type"] else ["entity_type", "id", "content"]
    as_text = dict.fromkeys([*keys, *_names(options["content"]), *_names(options["text"])])
    text = TextOptions(
        columns=_names(options["columns"]) or None,
        separator=options["separator"],
        nulls=options["nulls"],
        text=list(as_text),
    )
    return scan_files(files, options["file_format"], text, spool=spool)


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


def _summary(result: Any, files: Sequence[str], store: str, as_json: bool) -> None:
    """What became of the rows: JSON on standard output for scripts, else a few lines for a person."""
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
        _print_failures(result.failed)


def _print_failures(failed: Any, most: int = 10) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("row", "type", "id", "error", title=f"{failed.height:,} rows failed", title_justify="left")
    for row in failed.head(most).iter_rows(named=True):
        # Text, so that brackets in the data are not taken for markup.
        table.add_row(
            *(Text(str(row[name] if row[name] is not None else "")) for name in ("row", "entity_type", "id", "error"))
        )
    Console(stderr=True).print(table)
    if failed.height > most:
        click.echo(f"and {failed.height - most:,} more: write them all with --failed FILE", err=True)


def _write_failed(rows: Any, result: Any, path: str) -> None:
    """The failed input rows as they came, with the reason in a column that a later import leaves out."""
    import polars as pl

    from entityframes.files import write_file
    from entityframes.results import UNRESOLVED

    bad = result.outcomes.filter(pl.col("status").is_in(UNRESOLVED))
    reasons = bad.select("row", pl.coalesce("error", pl.col("status").cast(pl.String)).alias(ERROR_COLUMN))
    numbered = (
        rows.drop(ERROR_COLUMN, strict=False).with_row_index("row").filter(pl.col("row").is_in(bad["row"].implode()))
    )
    write_file(numbered.collect().join(reasons, on="row", how="left", maintain_order="left").drop("row"), path)


def _ids_frame(entity_type: str, ids: Sequence[str], ids_file: str | None) -> Any:
    import polars as pl

    import entityframes
    from entityframes.files import TextOptions, scan_files

    if bool(ids) == bool(ids_file):
        raise click.UsageError("give ids as arguments, or a file of them with --ids")
    if not ids_file:
        listed = [line for id in ids for line in (sys.stdin.read().splitlines() if id == "-" else [id])]
        return entityframes.ids(entity_type, listed)
    frame = scan_files([ids_file], None, TextOptions(text=["id"])).select(pl.col("id").cast(pl.String)).collect()
    return entityframes.ids(entity_type, frame["id"])


def _ids_arguments(command: F) -> F:
    command = click.argument("ids", nargs=-1, metavar="[ID]...")(command)
    command = click.option("--ids", "ids_file", type=click.Path(), help="File with a column id: CSV, Parquet, ...")(
        command
    )
    return click.option("--type", "entity_type", required=True, help="Entity type of the ids.")(command)


def _print_frame(frame: Any, as_json: bool) -> None:
    """A frame as NDJSON for scripts, as CSV where standard output is no terminal, else as a table."""
    import polars as pl

    if as_json:
        click.echo(frame.write_ndjson(), nl=False)
    elif not sys.stdout.isatty():
        click.echo(frame.write_csv(), nl=False)
    else:
        with pl.Config(tbl_rows=50, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True, fmt_str_lengths=60):
            click.echo(str(frame))


@cli.command()
@_ids_arguments
@_json_option
@_store_options
def get(
    entity_type: str, ids: Sequence[str], ids_file: str | None, as_json: bool, url: str | None, namespace: str
) -> None:
    """Print entities by id, in the order given; - reads ids from standard input. Exit status 1 if some are missing."""
    wanted = _ids_frame(entity_type, ids, ids_file)
    with _open(url, namespace) as store:
        found = store.get(wanted)
    _print_frame(found, as_json)
    sys.exit(0 if found["found"].all() else 1)


@cli.command()
@_ids_arguments
@_json_option
@_store_options
def exists(
    entity_type: str, ids: Sequence[str], ids_file: str | None, as_json: bool, url: str | None, namespace: str
) -> None:
    """Tell which ids are stored. Exit status 1 if some are missing."""
    wanted = _ids_frame(entity_type, ids, ids_file)
    with _open(url, namespace) as store:
        found = store.exists(wanted)
    _print_frame(found, as_json)
    sys.exit(0 if found["exists"].all() else 1)


@cli.command()
@_ids_arguments
@_json_option
@_store_options
def delete(
    entity_type: str, ids: Sequence[str], ids_file: str | None, as_json: bool, url: str | None, namespace: str
) -> None:
    """Delete entities by id. Ids that are not stored are no error."""
    wanted = _ids_frame(entity_type, ids, ids_file)
    with _open(url, namespace) as store:
        result = store.delete(wanted)
        _summary(result, [f"{wanted.height:,} ids"], store.address, as_json)
    sys.exit(0 if result.ok else 1)


@cli.command()
@click.argument("entity_type", metavar="TYPE")
@click.option("--out", type=click.Path(dir_okay=False), help="File to write.  [default: standard output, as CSV]")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["csv", "tsv", "ndjson", "parquet", "ipc"]),
    help="[default: by the file's name]",
)
@_json_option
@_store_options
def export(
    entity_type: str, out: str | None, file_format: str | None, as_json: bool, url: str | None, namespace: str
) -> None:
    """Write all entities of a type with their metadata as typed columns; --json prints NDJSON."""
    from entityframes.files import write_file

    with _open(url, namespace) as store:
        frame = store.read(entity_type)
    if out:
        write_file(frame, out, file_format)
        click.echo(f"{frame.height:,} rows of {entity_type} -> {out}", err=True)
    elif as_json or file_format == "ndjson":
        click.echo(frame.write_ndjson(), nl=False)
    else:
        with tempfile.TemporaryDirectory(prefix="entityframes-") as folder:
            path = Path(folder) / "out"
            write_file(frame, path, file_format or "csv")
            sys.stdout.buffer.write(path.read_bytes())


@cli.command()
@_json_option
@_store_options
def stats(as_json: bool, url: str | None, namespace: str) -> None:
    """Count entities by type: how many, how many embedded, due for it, and failed."""
    with _open(url, namespace) as store:
        frame = store.stats()
    _print_frame(frame, as_json)


@cli.command()
@click.option("--repair", is_flag=True, help="Mend what can be derived from what is there.")
@_json_option
@_store_options
def verify(repair: bool, as_json: bool, url: str | None, namespace: str) -> None:
    """Recompute hashes, ledger counts, jobs and recorded dtypes. Exit status 1 if something stays inconsistent."""
    from entityframes import reports

    with _open(url, namespace) as store:
        found = store.verify(repair=repair)
    click.echo(reports.of_verification(found, as_json))
    sys.exit(0 if found["repaired"].all() else 1)


if __name__ == "__main__":
    main()
