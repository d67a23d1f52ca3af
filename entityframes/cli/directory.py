"""The sync command: syncs a folder of markdown files with a store."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

import click

from entityframes.cli.command import Command, paths
from entityframes.cli.common import (
    json_option,
    open_for_dry_run,
    open_store,
    print_frame,
    progress_option,
    store_options,
)
from entityframes.cli.output import echo, note, print_exactly, tell
from entityframes.visible import visible


@click.command(
    cls=Command,
    examples="""
entityframes sync notes --dry-run
entityframes sync notes --delete --on-conflict newer
entityframes sync notes --import
""",
)
@click.argument("folder", metavar="DIR", type=click.Path(), shell_complete=paths("dir"))
@click.option("--import", "direction", flag_value="import", help="Only import files into the store.")
@click.option("--export", "direction", flag_value="export", help="Only export entities to the folder.")
@click.option("--default-type", default="note", show_default=True, help="Entity type of files in DIR itself.")
@click.option(
    "--type", "types", multiple=True, help="A type that belongs to the folder; may be repeated.  [default: all]"
)
@click.option("--suffix", "suffixes", multiple=True, help="Suffix of entity files.  [default: .md .mdx .markdown .txt]")
@click.option(
    "--ignore",
    multiple=True,
    metavar="PATTERN",
    help="Files to leave out, as in .gitignore; '!_*' includes names that begin with _. May be repeated.",
)
@click.option(
    "--on-conflict",
    type=click.Choice(["report", "files", "store", "newer"]),
    default="report",
    show_default=True,
    help="Which side wins if a file and its entity both changed.",
)
@click.option("--delete", is_flag=True, help="Apply deletions.")
@click.option(
    "--max-delete", type=click.IntRange(0), help="Maximum deletions.  [default: a fifth of the files, at most 100]"
)
@click.option(
    "--quarantine", is_flag=True, help="Rename invalid files to NAME.invalid, and back once they are repaired."
)
@click.option("--no-embed", is_flag=True, help="Do not create embedding jobs.")
@click.option("--name", help="Name of the folder in the store.  [default: host name and path]")
@click.option("--dry-run", is_flag=True, help="Show what would be done, without writing anything.")
@click.option("--watch", is_flag=True, help="Sync again whenever something changes, until SIGTERM or Ctrl-C.")
@progress_option
@json_option
@store_options
def sync(
    folder: str, direction: str | None, as_json: bool, url: str | None, namespace: str, dry_run: bool, watch: bool,
    progress: Any, **options: Any,
) -> None:  # fmt: skip
    """Sync a folder of markdown files with the store, in both directions.

    DIR/TYPE/ID.md is the entity (TYPE, ID): its front matter is the metadata, the rest is the content. Exit status 1 if
    files could not be synced, or changed on both sides.
    """
    from entityframes.directory import DirectorySync

    chosen = direction or "both"
    if chosen == "import" and options["on_conflict"] != "report":
        raise click.UsageError("--on-conflict cannot be used with --import, in which the files always win")
    if chosen == "export" and options["on_conflict"] not in ("report", "store"):
        raise click.UsageError("--on-conflict must be report or store with --export")
    with (open_for_dry_run if dry_run else open_store)(url, namespace) as store:
        given = {"suffixes": options["suffixes"]} if options["suffixes"] else {}
        directory = DirectorySync(
            store, folder, default_type=options["default_type"], ignore=options["ignore"] or None,
            types=options["types"] or None, name=options["name"], **given,
        )  # fmt: skip
        rules = {name: options[name] for name in ("on_conflict", "delete", "max_delete")}
        if dry_run:
            sys.exit(_print_plan(directory.plan(direction=chosen, progress=progress, **rules), as_json))  # type: ignore[arg-type]
        rules |= {"quarantine": options["quarantine"], "embed": not options["no_embed"]}
        if watch:
            _watch(directory, chosen, rules, as_json)
            return
        wanted = {
            "import": ("delete", "max_delete", "quarantine", "embed"),
            "export": ("on_conflict", "delete", "max_delete"),
            "both": tuple(rules),
        }[chosen]
        call = {"import": directory.import_files, "export": directory.export_files, "both": directory.sync}[chosen]
        try:
            result = call(progress=progress, **{name: rules[name] for name in wanted})  # type: ignore[operator]
        except KeyboardInterrupt:
            if store.last_result is not None:
                _print_result(store.last_result, folder, store.address, as_json)
            raise
        _print_result(result, folder, store.address, as_json)
    sys.exit(0 if result.ok else 1)


def _print_left_out(left_out: Any) -> None:
    """Print notes about what is left out, and why."""
    from entityframes.directory.left_out import notes

    for line in notes(left_out):
        note(_in_options(line))


def _print_plan(plan: Any, as_json: bool) -> int:
    """Print what would be done, one line per row; returns the exit status."""
    import polars as pl

    counts = dict(plan["action"].cast(pl.String).value_counts(sort=True).iter_rows())
    todo = plan.filter(pl.col("action") != "unchanged")
    if as_json:
        print_frame(todo, True)
        _print_left_out(plan.left_out)
    else:
        for row in todo.iter_rows(named=True):
            arrow = {"import": "->", "export": "<-", None: "  "}[row["direction"]]
            reason = f"  ({_in_options(row['reason'])})" if row["reason"] else ""
            entity = f"{visible(row['entity_type'])}/{visible(row['id'])}"
            echo(f"{row['action']:9} {visible(row['path'])} {arrow} {entity}{reason}")
        counted = ", ".join(f"{count:,} {action}" for action, count in counts.items()) or "no files and no entities"
        echo(f"{plan.height:,} files and entities: {counted}; nothing was written")
        _print_left_alone(plan.filter(pl.col("action") == "unchanged")["reason"])
        _print_left_out(plan.left_out)
    return 1 if counts.get("conflict") or counts.get("invalid") else 0


def _print_result(result: Any, folder: str, address: str, as_json: bool, *, print_left_out: bool = True) -> None:
    """Print the result of a sync: JSON on standard output for scripts, else a few lines for people."""
    import json

    import polars as pl

    done = result.outcomes.filter(pl.col("status") != "unchanged")
    if as_json:
        columns = ("path", "entity_type", "id", "action", "direction", "status", "error_kind", "error")
        report = {
            "ok": result.ok,
            "counts": result.counts,
            "elapsed": round(result.elapsed, 3),
            "changes": done.select(columns).head(1_000).to_dicts(),
            "left_out": result.left_out.head(1_000).to_dicts(),
        }
        print_exactly(json.dumps(report, ensure_ascii=False), json=True)
        return
    counted = ", ".join(f"{count:,} {status}" for status, count in result.counts.items() if count) or "no files"
    tell(f"{visible(folder)} <-> {visible(address)}: {counted}; {result.elapsed:.2f} s")
    _print_left_alone(result.outcomes.filter(pl.col("status") == "unchanged")["error"])
    if print_left_out:
        _print_left_out(result.left_out)
    bad = done.filter(pl.col("status").is_in(["conflict", "failed", "unknown"]))
    for row in bad.head(20).iter_rows(named=True):
        echo(f"{row['status']}: {visible(row['path'])}: {_in_options(row['error'])}", err=True)
    if bad.height > 20:
        echo(f"and {bad.height - 20:,} more: see them all with --json", err=True)


def _print_left_alone(reasons: Any) -> None:
    """Print notes about rows that are not in sync and were left unchanged, and why."""
    for reason, count in reasons.drop_nulls().value_counts(sort=True).iter_rows():
        note(f"{count:,} left alone: {_in_options(reason)}")


def _in_options(reason: str) -> str:
    """A reason with Python arguments replaced by command line options."""
    words = {"delete=True": "--delete", "max_delete=": "--max-delete ", "ignore=['!_*']": "--ignore '!_*'"}
    reason = visible(reason)
    for python, option in words.items():
        reason = reason.replace(python, option)
    return reason


def _watch(directory: Any, chosen: str, rules: dict[str, Any], as_json: bool) -> None:
    """Sync until a signal is received; the current sync is finished first."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    address = directory._store.address

    known: Any = None

    def report(result: Any) -> None:
        nonlocal known
        changed = known is None or not result.left_out.equals(known)
        known = result.left_out
        _print_result(result, str(directory.root), address, as_json, print_left_out=changed)

    def failed(error: Exception) -> None:
        echo(f"entityframes: {' '.join(str(error).split())}", err=True)

    tell(f"watching {visible(directory.root)}; press Ctrl-C to stop", err=True)
    directory.watch(direction=chosen, stop=stop, on_result=report, on_error=failed, **rules)
