"""The embedding commands: embed, search, jobs, spaces."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import click

from entityframes.cli.command import Command
from entityframes.cli.common import (
    condition,
    json_option,
    open_store,
    print_failures,
    print_frame,
    progress_option,
    store_options,
)
from entityframes.cli.output import echo, note, print_exactly, tell
from entityframes.visible import visible

#: Minimum and maximum seconds between two polls for work; doubled while there is none.
POLL = (0.2, 5.0)
#: Number of attempts of a worker that retries for as long as the embedder is busy.
UNLIMITED = 1_000_000
#: Maximum seconds to wait after the database or the embedder could not be reached.
MAX_PAUSE = 60.0


def _embedder(store: Any, name: str | None, options: Sequence[str], space: str | None) -> Any:
    """The named embedder, else that of the space's model, else the small local one."""
    from entityframes.embedding import embedder_of_model, load_embedder
    from entityframes.errors import EmbedderError

    if name is None:
        for row in store.spaces().iter_rows(named=True):
            if row["space"] == space or (space is None and row["active"]):
                embedder = embedder_of_model(row["model"])
                if embedder is None:
                    raise EmbedderError(
                        f"the space {row['space']} needs {row['model']}", advice="name it with --embedder"
                    )
                return embedder
    given = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise click.UsageError(f"--option {option}: must be NAME=VALUE")
        given[key.replace("-", "_")] = int(value) if value.isdigit() else value
    return load_embedder(name or "wordllama", **given)


def _names_of_embedders(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from importlib.metadata import entry_points

    return [name for name in entry_points(group="entityframes.embedders").names if name.startswith(incomplete)]


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and the first Ctrl-C stop the worker after the current batch; a second Ctrl-C interrupts it."""

    def request(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@click.command(
    cls=Command,
    examples="""
entityframes embed --embedder hashing --option dim=64
# queue what is in no job, then embed it with the model of the space
entityframes embed --enqueue
# a vector for each passage, in a space of its own
entityframes embed --embedder hashing --space passages --passages 800
""",
)
@click.option(
    "--embedder",
    "name",
    shell_complete=_names_of_embedders,
    help="hashing, wordllama, openai, sentence-transformers, or an embedder of another package."
    "  [default: that of the space, else wordllama]",
)
@click.option(
    "--option", "options", multiple=True, metavar="NAME=VALUE", help="Passed to the embedder, such as model=NAME."
)
@click.option("--space", help="Space to store the vectors in.  [default: the active space]")
@click.option("--passages", type=click.IntRange(1), metavar="SIZE", help="Cut contents into passages of at most this "
              "many characters.  [default: as recorded with the space, else whole contents]")  # fmt: skip
@click.option("--overlap", type=click.IntRange(0), metavar="CHARACTERS", help="Characters that are repeated in the "
              "next passage.  [default: 0]")  # fmt: skip
@click.option("--passage-format", type=click.Choice(["markdown", "text"]), help="How contents are structured.  "
              "[default: markdown]")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), help="Texts per call.  [default: the maximum of the embedder]")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Jobs processed in parallel.")
@click.option("--max-attempts", type=click.IntRange(1), help="Attempts while the embedder is busy, before the job "
              "fails.  [default: 3, unlimited with --watch]")  # fmt: skip
@click.option("--lease", type=click.FloatRange(0.5), default=60.0, show_default=True, help="Seconds after which "
              "the job of an unresponsive worker is taken over.")  # fmt: skip
@click.option("--enqueue", is_flag=True, help="First create jobs for everything that is due and not in a job.")
@click.option("--watch", is_flag=True, help="Keep waiting for new jobs, until SIGTERM or Ctrl-C.")
@progress_option
@json_option
@store_options
def embed(name: str | None, as_json: bool, url: str | None, namespace: str, **options: Any) -> None:
    """Embed entities that are due, once or as a worker.

    On PostgreSQL, several workers may run in parallel, on several machines; with --watch they wait for new work.
    """
    from entityframes.embedding.worker import EmbedOptions

    attempts = options["max_attempts"] or (UNLIMITED if options["watch"] else 3)
    chosen = EmbedOptions(options["batch_size"], options["workers"], attempts, options["lease"], _report_retry)
    passages = _passages(options)
    stop = threading.Event()
    with open_store(url, namespace) as store, _stopped_by_signals(stop):
        embedder = _embedder(store, name, options["options"], options["space"])
        if options["enqueue"]:
            _enqueue_all(store, options["space"])
        ok = True
        pauses = 0
        while True:
            try:
                result = store._embed(embedder, options["space"], chosen, options["progress"], stop, passages)
                pauses = 0
            except _transient_errors() as error:
                if not options["watch"]:
                    raise
                _report_retry(error)
                stop.wait(min(2.0**pauses, MAX_PAUSE))
                pauses += 1
            else:
                if result.rows or not options["watch"]:
                    _report(result, store, as_json)
                    ok = result.ok
            if not options["watch"] or not _wait_for_jobs(store, stop):
                break
    sys.exit(0 if ok or options["watch"] else 1)


def _passages(options: dict[str, Any]) -> Any:
    """The passages that the options describe; None without `--passages`.

    Raises:
        click.UsageError: the options do not fit together.
    """
    from entityframes.embedding.passages import Passages

    if options["passages"] is None:
        if options["overlap"] is not None or options["passage_format"] is not None:
            raise click.UsageError("--overlap and --passage-format are options of --passages SIZE")
        return None
    try:
        return Passages(
            size=options["passages"],
            overlap=options["overlap"] or 0,
            format=options["passage_format"] or "markdown",
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _enqueue_all(store: Any, space: str | None) -> None:
    """Create jobs for everything that is due; not needed for a new space, which starts with jobs for all entities."""
    known = store.spaces()["space"].to_list()
    if space is None or space in known or not known:
        tell(f"{store.enqueue(space=space if space in known else None):,} entities queued", err=True)


def _check_type(store: Any, entity_type: str | None) -> None:
    """Check that the store has entities of a type.

    Raises:
        EntityFramesError: it has none.
    """
    from entityframes.errors import EntityFramesError
    from entityframes.reading import lookup

    message = None if entity_type is None else lookup.unknown_type_message(store._engine, entity_type)
    if message is not None:
        raise EntityFramesError(message)


def _report_retry(error: object) -> None:
    echo(f"entityframes: {visible(error)}; retrying", err=True)


def _transient_errors() -> tuple[type[Exception], ...]:
    from entityframes.errors import EmbedderBusyError, TransientError

    return (EmbedderBusyError, TransientError)


def _wait_for_jobs(store: Any, stop: threading.Event) -> bool:
    """Wait until there is work; False if the worker is to stop. Polls, because the driver does not support NOTIFY."""
    pause = POLL[0]
    while not stop.wait(pause):
        try:
            if store.last_result is None or store._engine.embedding.open_jobs(store.last_result.space):
                return True
        except _transient_errors() as error:
            _report_retry(error)
        pause = min(pause * 2, POLL[1])
    return False


def _report(result: Any, store: Any, as_json: bool) -> None:
    if as_json:
        failures = result.failed.select("row", "entity_type", "id", "error_kind", "error").head(1_000).to_dicts()
        report = {
            "ok": result.ok,
            "space": result.space,
            "counts": result.counts,
            "calls": result.calls,
            "elapsed": round(result.elapsed, 3),
            "waiting": result.waiting,
            "in_no_job": result.unqueued,
            "failed": failures,
        }
        import json

        print_exactly(json.dumps(report, ensure_ascii=False), json=True)
        return
    from entityframes.results import UpsertResult

    tell(f"{visible(result.space)} -> {visible(store.address)}")
    # Remaining work is reported below, with command line options.
    summary = UpsertResult.__repr__(result).split("; first failure")[0].removeprefix("EmbedResult: ")
    tell(summary if result.rows else "nothing is queued")
    if result.counts["failed"]:
        print_failures(result.failed, "see them all with --json")
    _report_remaining(result, store)


def _report_remaining(result: Any, store: Any) -> None:
    """Print what remains to be done, and how: failed jobs have to be retried, and due entities may not be queued."""
    stats = store.stats(space=result.space)
    due, refused = int(stats["due"].sum()), int(stats["failed"].sum())
    if due and not store._engine.embedding.open_jobs(result.space):
        how = "--retry-failed" if result.space in store.jobs("failed")["space"] else "--enqueue"
        echo(f"{due:,} due but not in an open job: entityframes jobs {how} --space {visible(result.space)}", err=True)
    if refused:
        echo(f"{refused:,} were rejected: entityframes jobs --retry-failed --space {visible(result.space)}", err=True)


@click.command(
    cls=Command,
    examples="""
entityframes search "analytical engines" --mode text
entityframes search "who wrote programs" --type person --mode hybrid -k 3
entityframes search computing --type person --mode text --where "born > 1900"
""",
)
@click.argument("query")
@click.option("--type", "entity_type", help="Entity type to search.  [default: all]")
@click.option("--mode", type=click.Choice(["vector", "text", "hybrid"]), default="vector", show_default=True,
              help="Search by meaning, by words, or by both.")  # fmt: skip
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="Maximum number of entities.")
@click.option("--per-entity", type=click.IntRange(1), default=1, show_default=True, help="Maximum number of passages "
              "of each entity.")  # fmt: skip
@click.option("--where", metavar="SQL", help="Condition on the columns of the type, such as \"country = 'Iceland'\".")
@click.option(
    "--embedder",
    "name",
    shell_complete=_names_of_embedders,
    help="Embedder for the query.  [default: that of the active space]",
)
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="Passed to the embedder.")
@progress_option
@json_option
@store_options
def search(
    query: str,
    entity_type: str | None,
    mode: Any,
    k: int,
    per_entity: int,
    where: str | None,
    name: str | None,
    options: Sequence[str],
    progress: Any,
    as_json: bool,
    url: str | None,
    namespace: str,
) -> None:
    """Find entities by meaning, by words, or both, best first.

    Exit status 1 if none is found.
    """
    import polars as pl

    with _open_to_search(url, namespace, mode) as store:
        _check_type(store, entity_type)
        embedder = None if name is None else _embedder(store, name, options, None)
        selected = None if where is None else condition(where)
        found = store.search(
            query, entity_type=entity_type, k=k, per_entity=per_entity, mode=mode, where=selected, embedder=embedder,
            progress=progress,
        )  # fmt: skip
        due = None if found.height or mode == "text" else _note_of_due(store)
    if sys.stdout.isatty() and not as_json:
        # Passages on one line, as much of them as fits.
        found = found.with_columns(pl.col("score").round(3), pl.col("passage").str.replace_all(r"\s+", " "))
    print_frame(found, as_json, ["rank", "score", "entity_type", "id", "passage"], empty="nothing found")
    if due:
        note(due)
    sys.exit(0 if found.height else 1)


def _open_to_search(url: str | None, namespace: str, mode: str) -> Any:
    """Open the store, read-only unless the text index is out of date and can be written."""
    from entityframes.errors import EntityFramesError

    store = open_store(url, namespace, read_only=True)
    if mode == "vector" or store._engine.text.state().complete:
        return store
    store.close()
    with suppress(EntityFramesError):
        return open_store(url, namespace)
    return open_store(url, namespace, read_only=True)


def _note_of_due(store: Any) -> str | None:
    """A note if some of the searched entities are not embedded yet, with the command that embeds them."""
    from entityframes.embedding import spaces
    from entityframes.embedding.jobs import Remaining

    due = int(store.stats()["due"].sum())
    unqueued = Remaining(store._engine, spaces.find(store._engine, None)["space"]).in_no_job()
    if unqueued:
        return f"{due:,} due for embedding, {unqueued:,} of them not in a job: entityframes embed --enqueue"
    return f"{due:,} due for embedding: entityframes embed" if due else None


@click.command(
    cls=Command,
    examples="""
entityframes jobs
entityframes jobs --state failed
entityframes jobs --enqueue --type person
""",
)
@click.option("--state", type=click.Choice(["pending", "running", "done", "failed"]), help="Only jobs in this state.")
@click.option("--enqueue", is_flag=True, help="Create jobs for everything that is due or failed, of --type if given.")
@click.option("--type", "entity_type", help="Entity type for --enqueue.")
@click.option("--retry-failed", is_flag=True, help="Queue failed entities again.")
@click.option("--space", help="Space to queue for.  [default: the active space]")
@json_option
@store_options
def jobs(
    state: str | None,
    enqueue: bool,
    entity_type: str | None,
    retry_failed: bool,
    space: str | None,
    as_json: bool,
    url: str | None,
    namespace: str,
) -> None:
    """List the embedding jobs, oldest first, or create jobs."""
    with open_store(url, namespace, read_only=not (enqueue or retry_failed)) as store:
        if enqueue:
            _check_type(store, entity_type)
            tell(f"{store.enqueue(entity_type, space=space):,} entities queued", err=True)
        if retry_failed:
            tell(f"{store.retry_failed(space=space):,} entities queued again", err=True)
        print_frame(
            store.jobs(state),
            as_json,
            ["job_id", "space", "state", "entities", "attempts", "error", "updated_at"],
            empty="no jobs",
        )


@click.command(
    cls=Command,
    examples="""
entityframes spaces
entityframes spaces --activate hashing-64
""",
)
@click.option("--activate", metavar="SPACE", help="Use this space for searches.")
@click.option("--index", metavar="SPACE", help="Create the index for approximate search (PostgreSQL with pgvector).")
@click.option("--drop", metavar="SPACE", help="Delete this space with its vectors.")
@click.option("--vacuum", is_flag=True, help="Delete vectors that no entity uses.")
@progress_option
@json_option
@store_options
def spaces(
    activate: str | None,
    index: str | None,
    drop: str | None,
    vacuum: bool,
    progress: Any,
    as_json: bool,
    url: str | None,
    namespace: str,
) -> None:
    """List the embedding spaces, and activate, index, drop or vacuum them.

    A space holds the vectors of one model; the list says how much of the store is embedded in each.
    """
    with open_store(url, namespace, read_only=not (index or activate or drop or vacuum)) as store:
        if index and not store.index_space(index, progress=progress):
            echo(f"no index for {visible(index)}: it takes pgvector 0.8 and at most 2,000 dimensions; "
                       "search stays exact", err=True)  # fmt: skip
        if activate:
            store.activate(activate)
        if drop:
            store.drop_space(drop)
        if vacuum:
            tell(f"{store.vacuum():,} unused vectors deleted", err=True)
        print_frame(store.spaces(), as_json, empty="no spaces: nothing is embedded yet")
