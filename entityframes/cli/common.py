"""Shared by the commands: options, opening the store, and printing results and frames."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import click

from entityframes.cli.command import paths
from entityframes.cli.errors import CommandError, UsageError
from entityframes.cli.output import echo, note, print_exactly, tell
from entityframes.visible import visible

if TYPE_CHECKING:
    from pathlib import Path

F = TypeVar("F", bound=Callable[..., Any])


def url_option(command: F) -> F:
    """--store."""
    return click.option(
        "--store", "url", metavar="URL", shell_complete=paths("file"),
        help="Path of a DuckDB file or postgresql://user@host/database.  [default: $ENTITYFRAMES_URL, else "
        "$DATABASE_URL, else entities.duckdb]",
    )(command)  # fmt: skip


def store_options(command: F) -> F:
    """--store and --namespace."""
    return click.option("--namespace", default="entityframes", show_default=True, help="Schema of the store's tables.")(
        url_option(command)
    )


def json_option(command: F) -> F:
    """--json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")(command)


class _Progress(click.Choice[str]):
    """How progress is shown: the words of the command line, and the values of the parameter `progress`."""

    values: ClassVar[dict[str, Any]] = {"auto": None, "bar": True, "log": "log", "none": False}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self.values[super().convert(value, param, ctx)]


def progress_option(command: F) -> F:
    """--progress and --no-progress."""
    kind = _Progress(list(_Progress.values))
    command = click.option("--no-progress", "progress", type=kind, flag_value="none", help="Show no progress.")(command)
    return click.option(
        "--progress", type=kind, default="auto", show_default=True,
        help="Show progress as a bar or as a line every few seconds; auto is a bar in a terminal.",
    )(command)  # fmt: skip


def given_options(names: Sequence[str]) -> list[str]:
    """Those of some options of the current command that were given on the command line, for messages."""
    context = click.get_current_context()
    line = click.core.ParameterSource.COMMANDLINE
    shown = {
        one.name: one.opts[0] if isinstance(one, click.Option) else str(one.metavar).strip("[]")
        for one in context.command.params
    }
    return [shown[name] for name in names if context.get_parameter_source(name) is line]


def condition(sql: str) -> Any:
    """The Polars expression for the condition of --where.

    Raises:
        click.UsageError: it is none.
    """
    import polars as pl

    try:
        return pl.sql_expr(sql)
    except pl.exceptions.PolarsError:
        raise UsageError(f"--where {sql!r} is no SQL", advice="write it like \"country = 'Iceland'\"") from None


def counted(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def confirm_deletion(selected: int, one: str, many: str, *, yes: bool) -> None:
    """Ask whether to delete what a condition selects, and exit if the answer is no.

    Args:
        selected: how many it selects.
        one, many: what they are, in the singular and the plural.
        yes: whether --yes was given.

    Raises:
        click.ClickException: there is no terminal to ask on, and no --yes.
    """
    if yes or not selected:
        return
    what, it = (f"{one} matches", "it") if selected == 1 else (f"{many} match", "them")
    if not sys.stdin.isatty():
        raise CommandError(f"{selected:,} {what}; nothing was deleted", advice=f"run it with --yes to delete {it}")
    if not click.confirm(visible(f"{selected:,} {what}: delete {it}?"), err=True):
        echo("nothing was deleted", err=True)
        sys.exit(1)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory(prefix="entityframes-") as folder:
        yield Path(folder)


def open_store(url: str | None, namespace: str, *, read_only: bool = False) -> Any:
    """Open the store given by the options; a command that only reads does not create it."""
    import entityframes

    print_origin(url)
    return entityframes.connect(url, namespace=namespace, read_only=read_only)


def print_origin(url: str | None) -> None:
    """Print once which store is used, if no option says it and $DATABASE_URL does, which may be for other programs."""
    from entityframes.engines.url import parse_url

    printed = click.get_current_context().meta
    location = parse_url(url)
    if location.origin and not printed.get("entityframes.origin"):
        printed["entityframes.origin"] = True
        tell(f"store: {visible(location.address)} ({location.origin})", err=True)


def open_for_dry_run(url: str | None, namespace: str) -> Any:
    """Open the store given by the options read-only; if it does not exist yet, an empty store in memory."""
    import entityframes

    try:
        return open_store(url, namespace, read_only=True)
    except entityframes.ConnectError as error:
        if not error.missing:
            raise
        note(f"{error.happened}; the dry run assumes an empty store")
        return entityframes.connect(":memory:")


def print_summary(
    result: Any, files: Sequence[str], target: str, as_json: bool, rest: str | None = None, notes: Sequence[str] = ()
) -> None:
    """Print the result of a command: JSON on standard output for scripts, else a few lines for people.

    Args:
        result: the result.
        files: what was read.
        target: the store or the table.
        as_json: whether to print JSON.
        rest: how to see the failed rows that are not shown.
        notes: notes about how the files were interpreted.
    """
    import json

    if as_json:
        failed = result.failed
        failures = failed.select("row", *_key_of(failed), "error_kind", "rule", "error", "sqlstate")
        report = {
            "ok": result.ok,
            "counts": result.counts,
            "batches": result.batches,
            "elapsed": round(result.elapsed, 3),
            "failed": failures.head(1_000).to_dicts(),
            **({"notes": [*notes, *result.notes]} if notes or result.notes else {}),
        }
        print_exactly(json.dumps(report, ensure_ascii=False, default=str), json=True)
        return
    tell(f"{' '.join(map(visible, files))} -> {visible(target)}")
    shown = "\n".join(repr(result).splitlines()[:2]).split("; first failure")[0]
    tell(shown.removeprefix("UpsertResult: ").removeprefix("DeleteResult: "))
    for text in result.notes:
        echo(f"note: {text}", err=True)
    if result.counts["failed"]:
        print_failures(result.failed, rest)


def _key_of(outcomes: Any) -> list[str]:
    """The columns of the key in outcomes."""
    names: list[str] = outcomes.columns
    return names[names.index("row") + 1 : names.index("status")]


def print_failures(failed: Any, rest: str | None = None, most: int = 10) -> None:
    """Print the first failed rows as a table on standard error; `rest` is how to see the others."""
    from entityframes.cli.show import print_table

    title = "1 row failed" if failed.height == 1 else f"{failed.height:,} rows failed"
    echo(f"{title} (the first row of the input is row 0)", err=True)
    shown = failed.select("row", *_key_of(failed), "error")
    print_table(shown.rename({"entity_type": "type"}, strict=False), err=True, most=most, rest=rest)


def print_frame(frame: Any, as_json: bool, shown: Sequence[str] | None = None, empty: str = "no rows") -> None:
    """Print a frame: as NDJSON for scripts, as CSV if standard output is not a terminal, else as a table.

    Args:
        frame: the rows.
        as_json: whether to print NDJSON.
        shown: the columns for people; None for all.
        empty: what to say to people if there are no rows.
    """
    if as_json:
        if not frame.is_empty():
            print_exactly(frame.write_ndjson(), json=True)
    elif not sys.stdout.isatty():
        click.echo(frame.write_csv(), nl=False)
    elif frame.is_empty():
        echo(empty)
    else:
        from entityframes.cli.show import print_table

        print_table(frame if shown is None else frame.select(shown), rest="see them all with --json")


def print_exported(frame: Any, what: str, out: str | None, file_format: str | None, as_json: bool) -> None:
    """Write a frame to a file, or print it.

    Args:
        frame: the rows.
        what: what they are, for display.
        out: the file; None for standard output.
        file_format: the format; None to infer it from the name of the file, or CSV.
        as_json: whether to print NDJSON.
    """
    from entityframes.files import check_writable, nonfinite, write_file

    kind = file_format or ("csv" if not as_json else "ndjson")
    if check_writable(frame.schema, out or f"standard output.{kind}", file_format) in ("ndjson", "json"):
        for name in nonfinite(frame):
            lost = f"column {name!r} contains NaN or infinities, which JSON cannot represent: they are written as null"
            note(visible(lost))
    if out:
        write_file(frame, out, file_format)
        tell(f"{frame.height:,} rows of {what} -> {visible(out)}", err=True)
    elif as_json or file_format == "ndjson":
        print_frame(frame, True)
    else:
        with scratch_folder() as folder:
            path = folder / "out"
            write_file(frame, path, file_format or "csv")
            if sys.stdout.isatty():
                print_exactly(path.read_text("utf-8"))
            else:
                sys.stdout.buffer.write(path.read_bytes())
