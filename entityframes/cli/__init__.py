"""The command line: one thin function per command. Exit status 0, 1 (some rows failed) or 2 (could not run)."""

from __future__ import annotations

import io
import sys
from typing import Any

import click

import entityframes
from entityframes.cli import errors
from entityframes.cli.command import Group, Later
from entityframes.cli.output import level

#: The commands in the order of their use: where each is defined, and the first sentence of its help.
_COMMANDS = {
    "import": ("imports.import_command", "Import rows of files as entities, or into a table."),
    "get": ("entities.get", "Print entities by id, or rows of a table by key."),
    "exists": ("entities.exists", "Check which ids, or keys of a table, are stored."),
    "delete": ("entities.delete", "Delete entities, or rows of a table, by id or by a condition."),
    "export": ("entities.export", "Write all entities of a type, or all rows of a table, to a file."),
    "tables": ("tables.tables", "List the tables of the database with their primary keys."),
    "sync": ("directory.sync", "Sync a folder of markdown files with the store, in both directions."),
    "embed": ("embedding.embed", "Embed entities that are due, once or as a worker."),
    "search": ("embedding.search", "Find entities by meaning, by words, or both, best first."),
    "jobs": ("embedding.jobs", "List the embedding jobs, oldest first, or create jobs."),
    "spaces": ("embedding.spaces", "List the embedding spaces, and activate, index, drop or vacuum them."),
    "stats": ("entities.stats", "Count entities by type, and those that are embedded."),
    "verify": ("entities.verify", "Check that the store is consistent, and repair it."),
    "bench": ("bench.bench", "Compare a loop over entities (N+1) with one batch."),
    "completion": ("completion.completion", "Print the script that completes commands in a shell."),
}


class _Commands(Group):
    """A group that hides BrokenPipeError from click, which would exit with status 1."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except BrokenPipeError as error:
            raise errors.OutputClosedError from error


@click.group(
    cls=_Commands,
    commands=Later("entityframes.cli", _COMMANDS),
    context_settings={"help_option_names": ["-h", "--help"]},
    examples="""
entityframes import people.csv --type person --id email
entityframes get --type person ada@example.org
entityframes export person --out people.parquet
entityframes import people.csv --table people --create --key email
""",
)
@click.version_option(entityframes.__version__)
def cli() -> None:
    """Import, look up, search, export and delete entities, or rows of tables, in bulk.

    The store is that of --store, else of $ENTITYFRAMES_URL, else of $DATABASE_URL, else the file entities.duckdb.
    """


def main() -> None:
    """Run the command line and exit with its status."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() in ("utf-8", "utf8"):
        # A file name may contain other bytes, and printing it must not fail after the work is done.
        sys.stdout.reconfigure(errors="backslashreplace")
    level.reset()
    with errors.reported():
        sys.exit(cli(prog_name="entityframes", standalone_mode=False) or 0)
