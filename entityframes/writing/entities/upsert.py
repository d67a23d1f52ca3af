"""An upsert of entities."""

from __future__ import annotations

from entityframes.engines.base import Engine
from entityframes.interrupt import Interrupt
from entityframes.writing.entities.target import EntityTarget
from entityframes.writing.options import Options
from entityframes.writing.upsert import Upsert


def entity_upsert(engine: Engine, options: Options, interrupt: Interrupt) -> Upsert:
    """One call of `upsert` on a store."""
    return Upsert(
        engine, options, interrupt, EntityTarget.outcomes, lambda run: EntityTarget(engine, options, run)
    )  # fmt: skip
