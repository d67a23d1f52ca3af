"""An upsert into a table."""

from __future__ import annotations

from entityframes.engines.tables import Relation, TableEngine
from entityframes.interrupt import Interrupt
from entityframes.results import UPSERT_STATUSES
from entityframes.writing.options import TableOptions
from entityframes.writing.tables.target import TableNames, TableTarget
from entityframes.writing.upsert import Upsert


def table_upsert(
    engine: TableEngine,
    relation: Relation,
    options: TableOptions,
    interrupt: Interrupt,
    statuses: tuple[str, ...] = UPSERT_STATUSES,
    run_id: str | None = None,
) -> Upsert:
    """One call of `upsert` on a table."""
    outcomes = TableNames(relation).outcomes(statuses)
    return Upsert(engine, options, interrupt, outcomes, lambda run: TableTarget(engine, relation, options, run), run_id)
