"""An upsert of entities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from entityframes.engines.base import Engine
from entityframes.engines.batch import random_id
from entityframes.interrupt import Interrupt
from entityframes.results import UPSERT_STATUSES
from entityframes.writing.entities.target import EntityTarget
from entityframes.writing.options import Options
from entityframes.writing.upsert import Upsert


def entity_upsert(
    engine: Engine,
    options: Options,
    interrupt: Interrupt,
    statuses: tuple[str, ...] = UPSERT_STATUSES,
    run_id: str | None = None,
    new_id: Callable[[], str] = random_id,
) -> Upsert:
    """One call of `upsert` on a store."""
    outcomes = EntityTarget.outcomes
    if statuses != outcomes.statuses:
        outcomes = replace(outcomes, statuses=statuses)
    return Upsert(engine, options, interrupt, outcomes, lambda run: EntityTarget(engine, options, run), run_id, new_id)
