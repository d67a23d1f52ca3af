"""The rows of a frame, judged before the database sees them: which can be stored, and which give way to another."""

from __future__ import annotations

import polars as pl

from entityframes import conforming
from entityframes.canonical import Inferred, Shape, inferred
from entityframes.errors import DuplicateError
from entityframes.fields import Fields
from entityframes.frames import KEY
from entityframes.options import OnDuplicate, Options
from entityframes.validation import canonicalise

#: A sha256 in hex.
_HASH = "^[0-9a-fA-F]{64}$"


def judge(
    chunk: pl.DataFrame, fields: Fields, options: Options
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, Inferred], list[Shape]]:
    """Canonical rows, the key and error of those that break a rule, and the dtypes found in JSON of each type.

    The last are the shapes of their JSON, of which the rows have the number in ``shape`` if they came as JSON text.
    """
    canonical = canonicalise(chunk, options.nulls)
    rows, invalid = canonical.valid, canonical.invalid
    if has_fields := any(names for names, _ in canonical.shapes):
        rows, misfits, grown = _conforming(rows, fields)
        invalid = pl.concat([invalid, *misfits])
    if "expected" in chunk.columns:
        hashes = chunk.select("row", "expected", "expected_metadata")
        no_hash = ~pl.all_horizontal(pl.col("expected", "expected_metadata").str.contains(_HASH).fill_null(True))
        wrong = rows.join(hashes.filter(no_hash), on="row", how="semi").select("row", *KEY)
        error = f"{options.expected_hash} holds no sha256 in hex"
        invalid = pl.concat([invalid, wrong.with_columns(error=pl.lit(error))])
        hashes = hashes.filter(~no_hash).with_columns(pl.col("expected", "expected_metadata").str.decode("hex"))
        rows = rows.join(hashes, on="row", maintain_order="left")
    found = _inferred(rows, canonical.shapes) if has_fields else {}
    for entity_type in found:
        found[entity_type] |= grown[entity_type]
    return rows, invalid, found, canonical.shapes


def _inferred(rows: pl.DataFrame, shapes: list[Shape]) -> dict[str, Inferred]:
    """For each type, the dtypes of the fields that its rows have in JSON."""
    used: dict[str, list[Shape]] = {}
    for entity_type, number in rows[["entity_type", "shape"]].unique(maintain_order=True).iter_rows():
        used.setdefault(entity_type, []).append(shapes[number])
    return {entity_type: inferred(of_type) for entity_type, of_type in used.items()}


def _conforming(
    rows: pl.DataFrame, fields: Fields
) -> tuple[pl.DataFrame, list[pl.DataFrame], dict[str, dict[str, pl.DataType]]]:
    """The rows whose JSON metadata fits the declared dtypes of their type, what is wrong with the others, and the
    fields of each type that have to be wider for them.
    """
    misfits = []
    grown: dict[str, dict[str, pl.DataType]] = {}
    for entity_type in rows["entity_type"].unique():
        declared = fields.declared(entity_type)
        grown[entity_type] = {}
        if declared:
            own = rows.filter(pl.col("entity_type") == entity_type)
            grown[entity_type] = conforming.grown(own["metadata"], declared)
            declared |= grown[entity_type]
            wrong = conforming.nonconforming(own["metadata"], declared).unique("row", keep="first")
            dtypes = wrong["field"].replace_strict(
                {name: str(dtype) for name, dtype in declared.items()}, return_dtype=pl.String
            )
            error = pl.format("metadata field {} holds {}, which is no {}", "field", "value", pl.lit(dtypes))
            misfits.append(own[wrong["row"]].select("row", *KEY).with_columns(wrong.select(error=error).to_series()))
    if misfits:
        rows = rows.join(pl.concat(misfits), on="row", how="anti", maintain_order="left")
    return rows, misfits, grown


def losers(rows: pl.DataFrame, policy: OnDuplicate) -> pl.Series:
    """The ``row`` of each row that gives way to another one with its key.

    Raises:
        DuplicateError: there are any, and the policy is "error".
    """
    key = pl.struct(pl.col(KEY).cast(pl.Binary))
    kept = key.is_first_distinct() if policy == "first" else key.is_last_distinct()
    lost = rows.filter(~kept)
    if policy == "error" and lost.height:
        shown = ", ".join(
            f"{kind}/{id}" for kind, id in lost.select(KEY).unique(maintain_order=True).head(5).iter_rows()
        )
        raise DuplicateError(
            f"{lost.height:,} {'row repeats' if lost.height == 1 else 'rows repeat'} the key of another row "
            f"({shown}{', ...' if lost.height > 5 else ''}): "
            "make the ids unique, or choose on_duplicate='last' or 'first'"
        )
    return lost["row"]
