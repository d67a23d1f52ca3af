"""Verification of a store: finds inconsistencies by recomputing what can be recomputed, and repairs them if possible.

Hashes, the ledger and jobs are checked in the database, in one snapshot. The recorded metadata fields are compared with
the kinds of values that the database finds, and declared dtypes with every value.
"""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from entityframes.engines.base import Engine
from entityframes.interrupt import Interrupt
from entityframes.metadata import conformance, dtypes
from entityframes.metadata.fields import JSON_TEXT, MAX_INFERRED, Fields
from entityframes.progress import Progress, Reporter

#: All checks, and whether their findings can be repaired from the stored data:
#: duplicate_key: a key has several rows;
#: key_hash: the stored hash of a key is wrong (DuckDB only, which finds entities by it);
#: content_hash, metadata_hash: the stored hash of the content or of the metadata is wrong;
#: metadata: the metadata is not a JSON object;
#: ledger: entities refer to a batch that is not in the ledger;
#: ledger_count: more entities refer to a batch than the batch wrote according to the ledger;
#: ledger_balance: the entities created minus those deleted do not add up to the number of entities;
#: job_batch, job_members: an embedding job without its batch, or with inconsistent lists of keys;
#: job_missing: an entity that is due and whose batch created a job, but which is in no job;
#: passage_entity: passages without their entity;
#: passages: an entity whose passages are incomplete, of several contents, or without a vector;
#: vector_space: vectors or passages without their space;
#: field_record: the recorded dtype of a metadata field cannot be read;
#: field_missing: metadata contains a field that is not recorded;
#: field_kind, field_value: an inferred or a declared field contains values that do not conform to its dtype.
CHECKS: dict[str, bool] = {
    "duplicate_key": True,
    "key_hash": True,
    "content_hash": True,
    "metadata_hash": True,
    "metadata": False,
    "ledger": True,
    "ledger_count": True,
    "ledger_balance": True,
    "job_batch": True,
    "job_members": True,
    "job_missing": True,
    "passage_entity": True,
    "passages": True,
    "vector_space": True,
    "field_record": True,
    "field_missing": True,
    "field_kind": True,
    "field_value": False,
}

_KEY = ["check", "entity_type", "id", "batch_id", "field"]

#: The columns of the result of `EntityStore.verify`.
VERIFY_SCHEMA = pl.Schema(
    {
        "check": pl.Enum(list(CHECKS)),
        "entity_type": pl.String(),
        "id": pl.String(),
        "batch_id": pl.String(),
        "field": pl.String(),
        "expected": pl.String(),
        "found": pl.String(),
        "repairable": pl.Boolean(),
        "repaired": pl.Boolean(),
    }
)

#: The kinds of JSON values that conform to an inferred dtype; null conforms to all of them.
_KINDS: dict[pl.DataType | None, set[str]] = {
    pl.Int64(): {"integer", "long integer"},
    pl.Float64(): {"integer", "long integer", "float"},
    pl.String(): {"string"},
    pl.Boolean(): {"boolean"},
    pl.Null(): set(),
}


def verify(
    engine: Engine, *, repair: bool, progress: Progress = None, interrupt: Interrupt | None = None
) -> pl.DataFrame:
    """The inconsistencies of a store; see `EntityStore.verify`."""
    interrupt = interrupt or Interrupt()
    types = engine.all_fields().filter("declared")["entity_type"].n_unique()
    with Reporter(progress, len(engine.checks) + 1 + types, what="verify", unit="checks") as reporter:

        def before_each() -> None:
            interrupt.check()
            reporter.advance(1)

        found = _find(engine, before_each)
    if not repair:
        return found
    if not found["repairable"].any():
        engine.embedding.vacuum()
        return found
    _repair(engine, found)
    engine.embedding.vacuum()
    remaining = _find(engine, interrupt.check).select(_KEY).with_columns(remains=True)
    remains = found.select(_KEY).join(remaining, on=_KEY, how="left", maintain_order="left", nulls_equal=True)[
        "remains"
    ]
    return found.with_columns(repaired=remains.is_null() & found["repairable"])


def _find(engine: Engine, before_each: Callable[[], None]) -> pl.DataFrame:
    found = [engine.inconsistencies(before_each), *_fields(engine, before_each)]
    findings = pl.concat(
        frame.select(
            (pl.col(name) if name in frame.columns else pl.lit(None)).cast(VERIFY_SCHEMA[name]).alias(name)
            for name in [*_KEY, "expected", "found"]
        )
        for frame in found
    )
    repairable = [name for name, can_repair in CHECKS.items() if can_repair]
    findings = findings.with_columns(
        repairable=pl.col("check").cast(pl.String).is_in(repairable), repaired=pl.lit(False)
    )
    return findings.sort(_KEY, nulls_last=True)


def _fields(engine: Engine, before_each: Callable[[], None]) -> list[pl.DataFrame]:
    """Recorded dtypes that cannot be read, fields that are not recorded, and values that do not conform to a dtype."""
    before_each()
    kinds = engine.kinds()
    # Read after the metadata: a field is recorded before the first row that has it.
    recorded, unreadable = _recorded(engine)
    per_type: dict[str, int] = {}
    for entity_type, _ in recorded:
        per_type[entity_type] = per_type.get(entity_type, 0) + 1
    found = [("field_record", *key, None, "a dtype", text) for key, text in unreadable.items()]
    for entity_type, field, kind, id in kinds.select("entity_type", "field", "kind", "id").iter_rows():
        if (entity_type, field) in unreadable:
            continue
        if (entity_type, field) not in recorded:
            if per_type.get(entity_type, 0) < MAX_INFERRED:
                found.append(("field_missing", entity_type, field, id, "a recorded dtype", f"{kind} values"))
            continue
        dtype, declared = recorded[entity_type, field]
        if not declared and dtype is not None and kind != "null" and kind not in _KINDS[dtype]:
            found.append(("field_kind", entity_type, field, id, str(dtype), f"{kind} values"))
    columns = dict.fromkeys(["check", "entity_type", "field", "id", "expected", "found"], pl.String)
    declared_of: dict[str, dict[str, pl.DataType]] = {}
    for (entity_type, field), (dtype, declared) in recorded.items():
        if declared and dtype is not None:
            declared_of.setdefault(entity_type, {})[field] = dtype
    misfits = []
    for entity_type, declared_fields in declared_of.items():
        before_each()
        misfits += _misfits(engine, entity_type, declared_fields)
    return [pl.DataFrame(found, columns, orient="row"), *misfits]


def _recorded(
    engine: Engine,
) -> tuple[dict[tuple[str, str], tuple[pl.DataType | None, bool]], dict[tuple[str, str], str]]:
    """The dtype of each recorded field and whether it was declared, and the fields whose dtype cannot be read."""
    recorded: dict[tuple[str, str], tuple[pl.DataType | None, bool]] = {}
    unreadable: dict[tuple[str, str], str] = {}
    for entity_type, field, text, declared in engine.all_fields().iter_rows():
        try:
            dtype = None if text == JSON_TEXT else dtypes.dtype_from_json(text)
            if not declared and dtype is not None and dtype not in _KINDS:
                raise ValueError(f"{dtype} is never inferred")
            recorded[entity_type, field] = dtype, declared
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            unreadable[entity_type, field] = text
    return recorded, unreadable


def _misfits(engine: Engine, entity_type: str, fields: dict[str, pl.DataType]) -> list[pl.DataFrame]:
    """Values of declared fields that do not conform to their dtypes."""
    dtypes = {name: str(dtype) for name, dtype in fields.items()}
    found = []
    for chunk in engine.select(["id", "metadata"], entity_type, None, None):
        objects = chunk.filter(pl.col("metadata").str.starts_with("{"))
        wrong = conformance.nonconforming(objects["metadata"], fields)
        if wrong.height:
            found.append(
                wrong.select(
                    check=pl.lit("field_value"),
                    entity_type=pl.lit(entity_type),
                    field="field",
                    id=pl.lit(objects["id"][wrong["row"]]),
                    expected=pl.col("field").replace_strict(dtypes, return_dtype=pl.String),
                    found="value",
                )
            )
    return found


def _repair(engine: Engine, found: pl.DataFrame) -> None:
    checks = found.filter("repairable")["check"].cast(pl.String).unique().to_list()
    engine.repair(checks)
    unreadable = found.filter(pl.col("check") == "field_record").select("entity_type", "field")
    if unreadable.height:
        engine.forget_fields(unreadable)
    missing = found.filter(pl.col("check").cast(pl.String).is_in(["field_record", "field_missing", "field_kind"]))
    if missing.height:
        kinds = engine.kinds().join(missing, on=["entity_type", "field"], how="semi", maintain_order="left")
        fields = Fields(engine)
        for (entity_type, field), group in kinds.group_by("entity_type", "field", maintain_order=True):
            fields.infer({str(entity_type): {str(field): _inferred(set(group["kind"]))}})


def _inferred(kinds: set[str]) -> pl.DataType | None:
    """The dtype for values of these kinds, or None for JSON text."""
    values = kinds - {"null"}
    if not values:
        return pl.Null()
    if "long integer" in values and "float" not in values:
        # The database does not report whether all of them fit into 64 bits.
        return None
    return next((dtype for dtype, fit in _KINDS.items() if values <= fit), None)
