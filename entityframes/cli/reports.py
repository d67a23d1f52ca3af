"""Command line reports of a plan and of a verification: lines for people, JSON for scripts."""

from __future__ import annotations

import json

import polars as pl

from entityframes.visible import visible
from entityframes.writing.plan import Plan

#: Maximum number of rows in a report, for people and in JSON.
_SHOWN, _LISTED = 20, 1_000


def of_plan(plan: Plan, as_json: bool) -> str:
    """The report of what an import would do."""
    if not as_json:
        return f"{plan.summary()}\nnothing was written"
    key = plan.frame.columns[1 : plan.frame.columns.index("action")]
    invalid = plan.frame.filter(pl.col("action") == "invalid").select("row", *key, "error")
    report = {
        "ok": not plan.counts["invalid"],
        "dry_run": True,
        "counts": plan.counts,
        **({"changed_contents": plan.changed_contents} if "old_hash" in plan.frame.columns else {}),
        "changed_fields": plan.changed_fields,
        "invalid": invalid.head(_LISTED).to_dicts(),
    }
    return as_json_text(report)


def as_json_text(report: object) -> str:
    """JSON; a value of a key that has no JSON type is written as text."""
    return json.dumps(report, ensure_ascii=False, default=str)


def of_verification(found: pl.DataFrame, as_json: bool) -> str:
    """The report of inconsistencies in a store."""
    counts = dict(found["check"].cast(pl.String).value_counts(sort=True).iter_rows())
    if as_json:
        ok = bool(found["repaired"].all())
        report = {"ok": ok, "counts": counts, "inconsistencies": found.head(_LISTED).to_dicts()}
        return as_json_text(report)
    if found.is_empty():
        return "the store is sound"
    counted = ", ".join(f"{count:,} {check}" for check, count in counts.items())
    noun = "inconsistency" if found.height == 1 else "inconsistencies"
    lines = [f"{found.height:,} {noun}: {counted}"]
    for row in found.head(_SHOWN).iter_rows(named=True):
        where = f"{row['entity_type']}/{row['id']}" if row["id"] is not None else row["entity_type"]
        place = " ".join(text for text in (where, row["field"], row["batch_id"] and f"batch {row['batch_id']}") if text)
        lines.append(
            f"{row['check']}: {visible(place) or 'the store'}: expected {visible(row['expected'] or 'None')}, "
            f"found {visible(row['found'] or 'None')}"
        )
    if found.height > _SHOWN:
        lines.append(f"and {found.height - _SHOWN:,} more: see them all with --json")
    repaired = int(found["repaired"].sum())
    if repaired:
        lines.append(f"{repaired:,} repaired")
    elif found["repairable"].any():
        lines.append(f"{int(found['repairable'].sum()):,} can be repaired with --repair")
    return "\n".join(lines)
