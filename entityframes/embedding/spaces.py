"""Spaces: which one is meant, and whether an embedder belongs to it."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import polars as pl

from entityframes.embedding.calls import Calls
from entityframes.embedding.embedders.base import Embedder, load
from entityframes.engines.base import Engine
from entityframes.errors import EmbedderBusyError, SpaceError

#: Also keeps a name from needing quotes in SQL.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@+-]{0,199}")


def find(engine: Engine, space: str | None) -> dict[str, Any]:
    """space, model and dim of a space, by default the active one.

    Raises:
        SpaceError: there is no such space.
    """
    known = engine.embedding.spaces().rows(named=True)
    for row in known:
        if row["space"] == space or (space is None and row["active"]):
            return row
    if space is None:
        queued = engine.embedding.open_jobs("")
        first = "" if queued else "store.enqueue(), since nothing is queued, and then "
        raise SpaceError(f"nothing is embedded yet: call {first}store.embed(embedder) first")
    names = ", ".join(row["space"] for row in known) or "none"
    raise SpaceError(f"no space is called {space!r}: there are {names}")


def settle(engine: Engine, embedder: Embedder, space: str | None) -> tuple[str, bool]:
    """The space that an embedder fills: the named one, else the active one, else a new one of the model's name.

    Returns:
        Its name, and whether it was made here: not before the embedder is loaded, and has embedded something, where
        nothing is queued on which that would be seen.

    Raises:
        SpaceError: its model or dimension is another one, or its name cannot be used.
        EmbedderError: the embedder cannot work; nothing was made.
    """
    for row in engine.embedding.spaces().iter_rows(named=True):
        if row["space"] == space or (space is None and row["active"]):
            check(row, embedder)
            return str(row["space"]), False
    name = re.sub(r"[^A-Za-z0-9_.:/@+-]", "-", embedder.name)[:200] if space is None else space
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise SpaceError(
            f"the space cannot be called {name!r}: a name is 1 to 200 ASCII letters, digits and _.:/@+-, "
            "and begins with a letter or digit"
        )
    if not 1 <= embedder.dim <= 16_000:
        raise SpaceError(f"the embedder {embedder.name} has dimension {embedder.dim}: a space has 1 to 16,000")
    load(embedder)
    if not engine.embedding.open_jobs(""):
        with suppress(EmbedderBusyError):
            # Who is busy is there.
            Calls(embedder, 1).try_out()
    made = engine.embedding.add_space(name, embedder.name, embedder.dim)
    # Somebody else may have made it meanwhile, of another model.
    check(find(engine, name), embedder)
    return name, made


def undo(engine: Engine, space: str) -> None:
    """Drop a new space whose embedder turned out not to work, unless somebody else has begun to fill it."""
    filled = engine.embedding.coverage().filter(pl.col("space") == space, pl.col("embedded") + pl.col("failed") > 0)
    busy = engine.embedding.jobs("running").filter(pl.col("space") == space)
    if filled.is_empty() and busy.is_empty():
        engine.embedding.drop_space(space)


def check(row: dict[str, Any], embedder: Embedder) -> None:
    """Refuse an embedder that is not of a space.

    Raises:
        SpaceError: model or dimension differ.
    """
    if (row["model"], row["dim"]) != (embedder.name, embedder.dim):
        raise SpaceError(
            f"the space {row['space']} holds vectors of {row['model']} with {row['dim']} dimensions, the embedder is "
            f"{embedder.name} with {embedder.dim}: give it a space of its own with space='...', and activate that"
        )
