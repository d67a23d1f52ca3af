"""Spaces: finding, creating and checking the space of an embedder."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import polars as pl

from entityframes.embedding.calls import Calls
from entityframes.embedding.embedders.base import Embedder, load
from entityframes.engines.base import Engine
from entityframes.errors import EmbedderBusyError, SpaceError

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


def resolve(engine: Engine, embedder: Embedder, space: str | None) -> tuple[str, bool]:
    """The space that an embedder fills: the named space, else the active one, else a new one named after the model.

    A new space is created only after the embedder was loaded. If no jobs are queued, which would show whether the
    embedder works, it also has to embed a plain text before.

    Returns:
        The name of the space, and whether it was created here.

    Raises:
        SpaceError: the space has another model or dimension, or its name is invalid.
        EmbedderError: the embedder does not work; nothing was created.
    """
    for row in engine.embedding.spaces().iter_rows(named=True):
        if row["space"] == space or (space is None and row["active"]):
            check(row, embedder)
            return str(row["space"]), False
    name = re.sub(r"[^A-Za-z0-9_.:/@+-]", "-", embedder.name)[:200] if space is None else space
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise SpaceError(
            f"invalid space name {name!r}: a name consists of 1 to 200 ASCII letters, digits and _.:/@+-, "
            "and begins with a letter or digit"
        )
    if not 1 <= embedder.dim <= 16_000:
        raise SpaceError(
            f"the dimension of the embedder {embedder.name} must be between 1 and 16,000, got {embedder.dim}"
        )
    load(embedder)
    if not engine.embedding.open_jobs(""):
        with suppress(EmbedderBusyError):
            # A busy embedder exists, so its space may be created.
            Calls(embedder, 1).probe()
    created = engine.embedding.add_space(name, embedder.name, embedder.dim)
    # Another process may have created it meanwhile, with another model.
    check(find(engine, name), embedder)
    return name, created


def undo(engine: Engine, space: str) -> None:
    """Drop a new space whose embedder turned out not to work, unless another worker has begun to fill it."""
    filled = engine.embedding.coverage().filter(pl.col("space") == space, pl.col("embedded") + pl.col("failed") > 0)
    busy = engine.embedding.jobs("running").filter(pl.col("space") == space)
    if filled.is_empty() and busy.is_empty():
        engine.embedding.drop_space(space)


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
