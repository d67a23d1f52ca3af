"""Validation of entities, and the canonical form in which they are hashed, compared and stored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import polars as pl

from entityframes.frames import records
from entityframes.frames.schema import KEY
from entityframes.frames.utf8 import readable
from entityframes.metadata import conformance, dtypes
from entityframes.metadata.canonical_json import NUL_ESCAPE, NUL_MESSAGE, Inferred, Shape, canonical_json, inferred
from entityframes.metadata.fields import Fields
from entityframes.writing.options import Options

#: The maximum size of a value in bytes of UTF-8, the same on every engine.
MAX_BYTES: Mapping[str, int] = {"entity_type": 255, "id": 1024, "content": 64 << 20, "metadata": 64 << 20}

#: A SHA-256 in hex.
_HASH = "^[0-9a-fA-F]{64}$"

_NO_INVALID = pl.DataFrame(
    schema={"row": pl.UInt32, **dict.fromkeys(["entity_type", "id", "rule", "error"], pl.String)}
)


@dataclass(frozen=True)
class Canonical:
    """The rows of an entity frame in canonical form."""

    #: row, entity_type, id, content, metadata (JSON text), content_hash and metadata_hash (Binary, SHA-256); with
    #: no_content (Boolean) if Python objects lack content.
    valid: pl.DataFrame
    #: row, entity_type, id, rule, error: the invalid rows, with the rule that each violates.
    invalid: pl.DataFrame
    #: The distinct shapes of metadata given as JSON text or as Python objects; if there are any, ``valid`` has their
    #: index in ``shape``.
    shapes: list[Shape]


def canonicalise(frame: pl.DataFrame, nulls: str = "write") -> Canonical:
    """Validate rows and convert them to canonical form.

    Args:
        frame: an entity frame with a ``row`` column. Without a content column, the content of each row is ``""``.
        nulls: "keep" allows null content, which becomes ``""``.

    Returns:
        Each row of `frame` once, either in ``valid`` or in ``invalid``; both in the order of `frame`.
    """
    if "content" not in frame.columns:
        frame = frame.with_columns(content=pl.lit(""))
    names = ["row", *KEY, "content", *(["metadata"] if "metadata" in frame.columns else [])]
    rows, unreadable = readable(frame[names])
    if (no_content := records.lacking(frame, "content")) is not None:
        rows = rows.with_columns(pl.when(~no_content).then("content").otherwise(pl.lit("")).alias("content"))
    if nulls == "keep":
        rows = rows.with_columns(pl.col("content").fill_null(""))
    keys = records.keys_of_dicts(frame)
    metadata, unparsable, shapes = _canonical_metadata(rows) if keys is None else _metadata_of_dicts(rows, keys)
    distinct = {shape: number for number, shape in enumerate(dict.fromkeys(filter(None, shapes)))}
    rows = pl.DataFrame([*(rows[name] for name in names[:4]), metadata])
    if shapes:
        numbers = [None if shape is None else distinct[shape] for shape in shapes]
        rows = rows.hstack([pl.Series("shape", numbers, dtype=pl.UInt32)])
    if no_content is not None:
        rows = rows.hstack([no_content.alias("no_content")])
    problems = _problems(rows, unreadable, unparsable)
    invalid = _NO_INVALID
    if problems is not None:
        ok = problems.is_null()
        invalid = rows[["row", *KEY]].hstack(problems.struct.unnest().get_columns()).filter(~ok)
        rows = rows.filter(ok)
    hashes = [sha256(rows["content"]).alias("content_hash"), sha256(rows["metadata"]).alias("metadata_hash")]
    return Canonical(rows.hstack(hashes), invalid, list(distinct))


@dataclass(frozen=True)
class Valid:
    """The result of `validate`."""

    #: As `Canonical.valid`, with expected and expected_metadata (Binary) if the caller expects hashes.
    rows: pl.DataFrame
    #: row, entity_type, id, rule, error: the invalid rows, also those with a value that does not fit a declared dtype.
    invalid: pl.DataFrame
    #: For each type, the dtypes inferred from JSON text; for declared fields, the dtypes to widen them to.
    inferred: dict[str, Inferred]
    #: As `Canonical.shapes`.
    shapes: list[Shape]


def validate(chunk: pl.DataFrame, fields: Fields, options: Options) -> Valid:
    """Validate the rows of a frame that has a ``row`` column and was prepared by `Options.with_expected`."""
    canonical = canonicalise(chunk, options.nulls)
    rows, invalid = canonical.valid, canonical.invalid
    # The values of Python objects have been converted to the declared dtypes already.
    if has_fields := not records.is_of_dicts(chunk) and any(names for names, _ in canonical.shapes):
        rows, misfits, grown = _conforming(rows, fields)
        invalid = pl.concat([invalid, *misfits])
    if "expected" in chunk.columns:
        hashes = chunk.select("row", "expected", "expected_metadata")
        malformed = ~pl.all_horizontal(pl.col("expected", "expected_metadata").str.contains(_HASH).fill_null(True))
        wrong = rows.join(hashes.filter(malformed), on="row", how="semi").select("row", *KEY)
        error = f"{options.expected_hash} is not a SHA-256 hash in hex"
        invalid = pl.concat([invalid, wrong.with_columns(rule=pl.lit("invalid_hash"), error=pl.lit(error))])
        hashes = hashes.filter(~malformed).with_columns(pl.col("expected", "expected_metadata").str.decode("hex"))
        rows = rows.join(hashes, on="row", maintain_order="left")
    found = _inferred(rows, canonical.shapes) if has_fields else {}
    for entity_type in found:
        found[entity_type] |= grown[entity_type]
    return Valid(rows, invalid, found, canonical.shapes)


def sha256(text: pl.Series) -> pl.Series:
    """The SHA-256 of the UTF-8 bytes of each value (Binary, 32 bytes)."""
    digest = hashlib.sha256
    return pl.Series(text.name, [digest(value).digest() for value in text.cast(pl.Binary).to_list()], dtype=pl.Binary)


def _problems(rows: pl.DataFrame, unreadable: pl.Series | None, unparsable: pl.Series | None) -> pl.Series | None:
    """The rule that each row violates and the error (Struct), null for valid rows; None if all rows are valid."""
    if unreadable is None and unparsable is None and _within_limits(rows):
        return None
    too_long = pl.col("metadata").str.len_bytes() > MAX_BYTES["metadata"]
    checks = [_as_problem("not_utf8", pl.lit(unreadable))] if unreadable is not None else []
    for name in (*KEY, "content"):
        checks += _text_problems(name)
    if unparsable is not None:
        checks.append(pl.lit(unparsable))
    checks.append(_as_problem("too_long", pl.when(too_long).then(pl.lit("metadata is over 64 MiB"))))
    problems = rows.select(pl.coalesce(checks)).to_series()
    return problems if problems.null_count() < rows.height else None


def _as_problem(rule: str, error: pl.Expr) -> pl.Expr:
    """A Struct of a rule and an error, null where the error is null."""
    return pl.when(error.is_not_null()).then(pl.struct(rule=pl.lit(rule), error=error.cast(pl.String)))


#: The minimum and maximum length of each column, and whether it contains a NUL.
_STATISTICS = [
    expression.alias(f"{name} {statistic}")
    for name in (*KEY, "content", "metadata")
    for statistic, expression in (
        ("min", pl.col(name).str.len_bytes().min()),
        ("max", pl.col(name).str.len_bytes().max()),
        # JSON escapes a NUL.
        ("nul", pl.lit(False) if name == "metadata" else pl.col(name).str.contains("\0", literal=True).any()),
    )
]


def _within_limits(rows: pl.DataFrame) -> bool:
    """Whether all text is valid. This is faster than finding the rule that each row violates."""
    statistics = rows.select_seq(_STATISTICS).row(0, named=True)
    return rows.is_empty() or all(
        rows[name].null_count() == 0
        and statistics[f"{name} min"] >= (name in KEY)
        and statistics[f"{name} max"] <= limit
        and not statistics[f"{name} nul"]
        for name, limit in MAX_BYTES.items()
    )


@cache
def _text_problems(name: str) -> list[pl.Expr]:
    """One problem expression for each rule that a text column may violate."""
    text, limit = pl.col(name), MAX_BYTES[name]
    size = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit} bytes"
    too_long = pl.format(f"{name} is {{}} bytes long, over the limit of {size}", text.str.len_bytes())
    rules = [
        ("null_key" if name in KEY else f"null_{name}", text.is_null(), pl.lit(f"{name} is null")),
        ("empty_key", (text == "") & pl.lit(name in KEY), pl.lit(f"{name} is empty")),
        ("nul_character", text.str.contains("\0", literal=True), pl.lit(f"{name} contains a NUL character (U+0000)")),
        ("too_long", text.str.len_bytes() > limit, too_long),
    ]
    return [_as_problem(rule, pl.when(violated).then(error)) for rule, violated, error in rules]


def _canonical_metadata(frame: pl.DataFrame) -> tuple[pl.Series, pl.Series | None, list[Shape | None]]:
    """Convert metadata to canonical JSON.

    Returns:
        The JSON text of each row, its problem (Struct of rule and error; None if there are none), and its shape if the
        metadata is given as JSON text.
    """
    if "metadata" not in frame.columns:
        return pl.Series("metadata", ["{}"]).new_from_index(0, frame.height), None, []
    metadata = frame["metadata"]
    if metadata.dtype == pl.String:
        canonical, errors, shapes = canonical_json(metadata.to_list())
        unparsable = _with_rule("invalid_json", pl.Series(errors, dtype=pl.String)) if any(errors) else None
        return pl.Series("metadata", canonical, dtype=pl.String), unparsable, shapes
    encoded, unreadable = readable(dtypes.encode(metadata).alias("metadata").to_frame())
    problems = [] if unreadable is None else [_with_rule("not_utf8", unreadable)]
    if (nul := _nul_problem(encoded["metadata"])) is not None:
        problems.append(nul)
    if (outside := dtypes.outside(metadata)) is not None and outside.null_count() < len(outside):
        problems.append(_with_rule("out_of_range", outside))
    problem = pl.select(pl.coalesce(problems)).to_series() if problems else None
    return encoded["metadata"], problem, []


def _metadata_of_dicts(
    frame: pl.DataFrame, keys: list[tuple[str, ...]]
) -> tuple[pl.Series, pl.Series | None, list[Shape | None]]:
    """As `_canonical_metadata`, for metadata whose canonical JSON was made from Python dicts with these keys."""
    is_null = frame["metadata"] == "null"
    metadata = frame.select(pl.when(~is_null).then("metadata").otherwise(pl.lit("{}")).alias("metadata")).to_series()
    return metadata, _nul_problem(metadata), [(names, ()) for names in keys]


def _nul_problem(metadata: pl.Series) -> pl.Series | None:
    """The problem of each row whose JSON text contains a NUL character; None if none does."""
    if not metadata.str.contains("\\u0000", literal=True).any():
        return None
    holds_nul = metadata.str.contains(NUL_ESCAPE.pattern)
    return _with_rule("nul_character", pl.select(pl.when(holds_nul).then(pl.lit(NUL_MESSAGE))).to_series())


def _inferred(rows: pl.DataFrame, shapes: list[Shape]) -> dict[str, Inferred]:
    """For each type, the dtypes inferred from the JSON text of its rows."""
    used: dict[str, list[Shape]] = {}
    for entity_type, number in rows[["entity_type", "shape"]].unique(maintain_order=True).iter_rows():
        used.setdefault(entity_type, []).append(shapes[number])
    return {entity_type: inferred(found) for entity_type, found in used.items()}


def _conforming(
    rows: pl.DataFrame, fields: Fields
) -> tuple[pl.DataFrame, list[pl.DataFrame], dict[str, dict[str, pl.DataType]]]:
    """Check JSON metadata against the declared dtypes of each type.

    Returns:
        The rows that conform, the invalid rows with rule and error, and the declared fields of each type that have to
        be widened for the valid rows.
    """
    misfits = []
    grown: dict[str, dict[str, pl.DataType]] = {}
    for entity_type in rows["entity_type"].unique():
        declared = fields.declared(entity_type)
        grown[entity_type] = {}
        if declared:
            of_type = rows.filter(pl.col("entity_type") == entity_type)
            grown[entity_type] = conformance.grown(of_type["metadata"], declared)
            declared |= grown[entity_type]
            wrong = conformance.nonconforming(of_type["metadata"], declared).unique("row", keep="first")
            types = wrong["field"].replace_strict(
                {name: str(dtype) for name, dtype in declared.items()}, return_dtype=pl.String
            )
            error = pl.format("metadata field {}: {} is not a valid {}", "field", "value", pl.lit(types))
            problem = wrong.select(rule=pl.lit("wrong_dtype"), error=error)
            misfits.append(of_type[wrong["row"]].select("row", *KEY).hstack(problem.get_columns()))
    if misfits:
        rows = rows.join(pl.concat(misfits), on="row", how="anti", maintain_order="left")
    return rows, misfits, grown


def _with_rule(rule: str, errors: pl.Series) -> pl.Series:
    """A Struct of a rule and each error, null where the error is null."""
    return pl.select(_as_problem(rule, pl.lit(errors))).to_series()
