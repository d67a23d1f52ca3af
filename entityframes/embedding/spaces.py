"""Spaces: finding, creating and checking the space of an embedder."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import polars as pl

from entityframes.embedding.calls import Calls
from entityframes.embedding.embedders.base import Embedder, load
from entityframes.engines.base import Engine
from entityframes.errors import EmbedderBusyError, SpaceError
from entityframes.retry import retry

if TYPE_CHECKING:
    from entityframes.embedding.passages import Passages

#: The names of spaces; none of these needs quoting in SQL.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@+-]{0,199}")


def find(engine: Engine, space: str | None) -> dict[str, Any]:
    """The row (space, model, dim, active, created_at) of a space, by default the active one.

    Raises:
        SpaceError: the space does not exist.
    """
    known = engine.embedding.spaces().rows(named=True)
    for row in known:
        if row["space"] == space or (space is None and row["active"]):
            return row
    if space is None:
        queued = engine.embedding.open_jobs("")
        first = "" if queued else "store.enqueue(), since nothing is queued, and then "
        raise SpaceError("nothing is embedded yet", advice=f"call {first}store.embed(embedder) first")
    names = ", ".join(row["space"] for row in known) or "none"
    raise SpaceError(f"no space named {space!r}; existing spaces: {names}")


def resolve(
    engine: Engine, embedder: Embedder, space: str | None, passages: Passages | None
) -> tuple[str, Passages | None, bool]:
    """The space that an embedder fills: the named space, else the active one, else a new one named after the model.

    A new space is created only after the embedder was loaded. If no jobs are queued, which would show whether the
    embedder works, it also has to embed a plain text before.

    Returns:
        The name of the space, how it cuts contents, and whether it was created here.

    Raises:
        SpaceError: the space has another model, dimension or passages, or its name is invalid.
        EmbedderError: the embedder does not work; nothing was created.
    """
    for row in engine.embedding.spaces().iter_rows(named=True):
        if row["space"] == space or (space is None and row["active"]):
            check(row, embedder)
            return str(row["space"]), recorded(row, passages), False
    name = default_name(embedder, passages) if space is None else space
    check_name(name)
    check_dim(embedder.dim, f"the embedder {embedder.name}")
    load(embedder)
    if not engine.embedding.open_jobs(""):
        with suppress(EmbedderBusyError):
            # A busy embedder exists, so its space may be created.
            Calls(embedder, 1).probe()
    created = add(engine, name, embedder.name, embedder.dim, passages)
    # Another process may have created it meanwhile, with another model or other passages.
    row = find(engine, name)
    check(row, embedder)
    return name, recorded(row, passages), created


def check_name(name: object) -> None:
    """Check the name of a new space.

    Raises:
        SpaceError: it is invalid.
    """
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise SpaceError(
            f"invalid space name {name!r}: a name consists of 1 to 200 ASCII letters, digits and _.:/@+-, "
            "and begins with a letter or digit"
        )


def check_dim(dim: int, of: str) -> None:
    """Check the dimension of a new space.

    Raises:
        SpaceError: it is not between 1 and 16,000.
    """
    if not 1 <= dim <= 16_000:
        raise SpaceError(f"the dimension of {of} must be between 1 and 16,000, got {dim}")


def default_name(embedder: Embedder, passages: Passages | None) -> str:
    """The name of a new space: that of the model, and the size and a hash of the passages."""
    model = re.sub(r"[^A-Za-z0-9_.:/@+-]", "-", embedder.name)
    if passages is None:
        return model[:200]
    cut = f"/passages-{passages.size}-{hashlib.sha256(passages.spec().encode()).hexdigest()[:6]}"
    return model[: 200 - len(cut)] + cut


def recorded(row: dict[str, Any], given: Passages | None = None) -> Passages | None:
    """How a space cuts contents; None if each content is a single passage.

    Raises:
        SpaceError: the space cuts them in another way than given, or with another version of the cutter.
    """
    if row["passages"] is None and given is None:
        return None
    from entityframes.embedding.passages import Passages

    if given is not None and row["passages"] != given.spec():
        kept = "whole contents" if row["passages"] is None else f"passages cut with {row['passages']}"
        raise SpaceError(
            f"the space {row['space']} has vectors of {kept}, not of {given.spec()}: leave out passages, or use a "
            "separate space with space='...', and activate it"
        )
    return Passages.from_spec(row["passages"])


def enqueue_retitled(engine: Engine, space: str) -> None:
    """Queue the entities whose metadata have changed since they were cut with their titles.

    An upsert that changes metadata alone creates no job, because it does not know which fields are titles.
    """
    keys = engine.embedding.retitled(space)
    if keys.height:
        engine.embedding.enqueue(space, None, keys)


def undo(engine: Engine, space: str) -> None:
    """Drop a new space whose embedder turned out not to work, unless another worker has begun to fill it."""
    filled = engine.embedding.coverage().filter(pl.col("space") == space, pl.col("embedded") + pl.col("failed") > 0)
    busy = engine.embedding.jobs("running").filter(pl.col("space") == space)
    if filled.is_empty() and busy.is_empty():
        drop(engine, space)


def add(engine: Engine, space: str, model: str, dim: int, passages: Passages | None) -> bool:
    """Add a space unless it exists; returns whether it was added."""
    spec = passages.spec() if passages else None
    return retry(lambda: engine.embedding.add_space(space, model, dim, spec), what=f"adding the space {space}")


def drop(engine: Engine, space: str) -> None:
    """Drop a space.

    PostgreSQL may end this with a deadlock: it locks whole tables, against queries that read them in another order.
    """

    def drop_if_exists() -> None:
        # A COMMIT that got no response may have dropped it.
        if space in engine.embedding.spaces()["space"]:
            engine.embedding.drop_space(space)

    retry(drop_if_exists, what=f"dropping the space {space}")


def check(row: dict[str, Any], embedder: Embedder) -> None:
    """Check that an embedder has the model and dimension of a space.

    Raises:
        SpaceError: the model or dimension differs.
    """
    if (row["model"], row["dim"]) != (embedder.name, embedder.dim):
        raise SpaceError(
            f"the space {row['space']} contains vectors of {row['model']} with {row['dim']} dimensions, but the "
            f"embedder is {embedder.name} with {embedder.dim}",
            advice="use a separate space with space='...', and activate it",
        )
