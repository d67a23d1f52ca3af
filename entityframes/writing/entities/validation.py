"""The rules of entities: which rows can be stored, and the one form in which they are hashed, compared and stored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import polars as pl

from entityframes.frames.schema import KEY
from entityframes.frames.utf8 import readable
from entityframes.metadata import conformance, dtypes
from entityframes.metadata.canonical_json import NUL_ESCAPE, NUL_MESSAGE, Inferred, Shape, canonical_json, inferred
from entityframes.metadata.fields import Fields
from entityframes.writing.options import Options

#: Limits of one value in bytes of UTF-8, the same on every engine.
MAX_BYTES: Mapping[str, int] = {"entity_type": 255, "id": 1024, "content": 64 << 20, "metadata": 64 << 20}

#: A sha256 in hex.
_HASH = "^[0-9a-fA-F]{64}$"

_NO_PROBLEM = pl.DataFrame(
    schema={"row": pl.UInt32, **dict.fromkeys(["entity_type", "id", "rule", "error"], pl.String)}
)


@dataclass(frozen=True)
class Canonical:
    """Rows of an entity frame in the one form that is hashed, compared and stored."""

    #: row, entity_type, id, content, metadata (JSON text), content_hash and metadata_hash (Binary, sha256).
    valid: pl.DataFrame
    #: row, entity_type, id, rule, error: the rows that break a rule.
    invalid: pl.DataFrame
    #: The different shapes of metadata that came as JSON text; then valid has a column ``shape`` of indices into this.
    shapes: list[Shape]


def canonicalise(frame: pl.DataFrame, nulls: str = "write") -> Canonical:
    """Validate rows and bring them into canonical form; the order is kept.

    Args:
        frame: an entity frame with a ``row`` column; without content, each has ``""``.
        nulls: "keep" if a null content is allowed: it becomes ``""`` too.

    Returns:
        Each row of `frame` once, either in ``valid`` or in ``invalid`` with a reason that names the rule.
    """
    if "content" not in frame.columns:
        frame = frame.with_columns(content=pl.lit(""))
    names = ["row", *KEY, "content", *(["metadata"] if "metadata" in frame.columns else [])]
    rows, unreadable = readable(frame[names])
    if nulls == "keep":
        rows = rows.with_columns(pl.col("content").fill_null(""))
    metadata, unparsable, shapes = _canonical_metadata(rows)
    distinct = {shape: number for number, shape in enumerate(dict.fromkeys(filter(None, shapes)))}
    rows = pl.DataFrame([*(rows[name] for name in names[:4]), metadata])
    if shapes:
        numbers = [None if shape is None else distinct[shape] for shape in shapes]
        rows = rows.hstack([pl.Series("shape", numbers, dtype=pl.UInt32)])
    problems = _problems(rows, unreadable, unparsable)
    invalid = _NO_PROBLEM
    if problems is not None:
        fine = problems.is_null()
        invalid = rows[["row", *KEY]].hstack(problems.struct.unnest().get_columns()).filter(~fine)
        rows = rows.filter(fine)
    hashes = [sha256(rows["content"]).alias("content_hash"), sha256(rows["metadata"]).alias("metadata_hash")]
    return Canonical(rows.hstack(hashes), invalid, list(distinct))


@dataclass(frozen=True)
class Valid:
    """Rows that can be stored, and what was found in their metadata."""

    #: As `Canonical.valid`, with expected and expected_metadata (Binary) where the caller expects something.
    rows: pl.DataFrame
    #: row, entity_type, id, rule, error: rows that break a rule, or hold a value that does not fit a declared dtype.
    invalid: pl.DataFrame
    #: The dtypes found in JSON of each type, and of declared fields those that have to be wider.
    inferred: dict[str, Inferred]
    #: The shapes of their JSON, of which the rows have the number in ``shape`` if they came as JSON text.
    shapes: list[Shape]


def validate(chunk: pl.DataFrame, fields: Fields, options: Options) -> Valid:
    """Check the rows of a frame that `Options.expecting` has seen, numbered in ``row``."""
    canonical = canonicalise(chunk, options.nulls)
    rows, invalid = canonical.valid, canonical.invalid
    if has_fields := any(names for names, _ in canonical.shapes):
        rows, misfits, grown = _conforming(rows, fields)
        invalid = pl.concat([invalid, *misfits])
    if "expected" in chunk.columns:
        hashes = chunk.select("row", "expected", "expected_metadata")
        no_hash = ~pl.all_horizontal(pl.col("expected", "expected_metadata").str.contains(_HASH).fill_null(True))
        wrong = rows.join(hashes.filter(no_hash), on="row", how="semi").select("row", *KEY)
        error = f"{options.expected_hash} is not a sha256 in hex"
        invalid = pl.concat([invalid, wrong.with_columns(rule=pl.lit("invalid_hash"), error=pl.lit(error))])
        hashes = hashes.filter(~no_hash).with_columns(pl.col("expected", "expected_metadata").str.decode("hex"))
        rows = rows.join(hashes, on="row", maintain_order="left")
    found = _inferred(rows, canonical.shapes) if has_fields else {}
    for entity_type in found:
        found[entity_type] |= grown[entity_type]
    return Valid(rows, invalid, found, canonical.shapes)


def sha256(texts: pl.Series) -> pl.Series:
    """The sha256 of each text's UTF-8 bytes, 32 bytes each, as Binary."""
    digest = hashlib.sha256
    return pl.Series(texts.name, [digest(text).digest() for text in texts.cast(pl.Binary).to_list()], dtype=pl.Binary)


def _problems(rows: pl.DataFrame, unreadable: pl.Series | None, unparsable: pl.Series | None) -> pl.Series | None:
    """The rule of the data that each row breaks, and the error (Struct), null where none; None if no row breaks one."""
    if unreadable is None and unparsable is None and _within_limits(rows):
        return None
    too_long = pl.col("metadata").str.len_bytes() > MAX_BYTES["metadata"]
    broken = [_as_problem("not_utf8", pl.lit(unreadable))] if unreadable is not None else []
    for name in (*KEY, "content"):
        broken += _text_problems(name)
    if unparsable is not None:
        broken.append(pl.lit(unparsable))
    broken.append(_as_problem("too_long", pl.when(too_long).then(pl.lit("metadata is over 64 MiB"))))
    problems = rows.select(pl.coalesce(broken)).to_series()
    return problems if problems.null_count() < rows.height else None


def _as_problem(rule: str, error: pl.Expr) -> pl.Expr:
    """A rule and the error that breaks it, null where there is no error."""
    return pl.when(error.is_not_null()).then(pl.struct(rule=pl.lit(rule), error=error.cast(pl.String)))


#: The shortest and the longest text of each column, and whether one holds a NUL.
_EXTENTS = [
    told.alias(f"{name} {what}")
    for name in (*KEY, "content", "metadata")
    for what, told in (
        ("least", pl.col(name).str.len_bytes().min()),
        ("most", pl.col(name).str.len_bytes().max()),
        # JSON escapes it.
        ("nul", pl.lit(False) if name == "metadata" else pl.col(name).str.contains("\0", literal=True).any()),
    )
]


def _within_limits(rows: pl.DataFrame) -> bool:
    """Whether no text breaks a rule, in less time than it takes to find out which."""
    extents = rows.select_seq(_EXTENTS).row(0, named=True)
    return rows.is_empty() or all(
        rows[name].null_count() == 0
        and extents[f"{name} least"] >= (name in KEY)
        and extents[f"{name} most"] <= limit
        and not extents[f"{name} nul"]
        for name, limit in MAX_BYTES.items()
    )


@cache
def _text_problems(name: str) -> list[pl.Expr]:
    """The rules of the data that a text may break, each null where it does not."""
    text, limit = pl.col(name), MAX_BYTES[name]
    size = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit} bytes"
    too_long = pl.format(f"{name} is {{}} bytes long, over the limit of {size}", text.str.len_bytes())
    rules = [
        ("null_key" if name in KEY else f"null_{name}", text.is_null(), pl.lit(f"{name} is null")),
        ("empty_key", (text == "") & pl.lit(name in KEY), pl.lit(f"{name} is empty")),
        ("nul_character", text.str.contains("\0", literal=True), pl.lit(f"{name} holds a NUL character (U+0000)")),
        ("too_long", text.str.len_bytes() > limit, too_long),
    ]
    return [_as_problem(rule, pl.when(broken).then(error)) for rule, broken, error in rules]


def _canonical_metadata(frame: pl.DataFrame) -> tuple[pl.Series, pl.Series | None, list[Shape | None]]:
    """The metadata of each row as canonical JSON, the problems (Struct of rule and error) of those that have none, and
    their shapes if they came as JSON.
    """
    if "metadata" not in frame.columns:
        return pl.Series("metadata", ["{}"]).new_from_index(0, frame.height), None, []
    metadata = frame["metadata"]
    if metadata.dtype == pl.String:
        texts, errors, shapes = canonical_json(metadata.to_list())
        unparsable = _with_rule("invalid_json", pl.Series(errors, dtype=pl.String)) if any(errors) else None
        return pl.Series("metadata", texts, dtype=pl.String), unparsable, shapes
    encoded, unreadable = readable(dtypes.encode(metadata).alias("metadata").to_frame())
    problems = [] if unreadable is None else [_with_rule("not_utf8", unreadable)]
    if encoded["metadata"].str.contains("\\u0000", literal=True).any():
        holds_nul = encoded["metadata"].str.contains(NUL_ESCAPE.pattern)
        problems.append(
            _with_rule("nul_character", pl.select(pl.when(holds_nul).then(pl.lit(NUL_MESSAGE))).to_series())
        )
    if (outside := dtypes.outside(metadata)) is not None and outside.null_count() < len(outside):
        problems.append(_with_rule("out_of_range", outside))
    problem = pl.select(pl.coalesce(problems)).to_series() if problems else None
    return encoded["metadata"], problem, []


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
            grown[entity_type] = conformance.grown(own["metadata"], declared)
            declared |= grown[entity_type]
            wrong = conformance.nonconforming(own["metadata"], declared).unique("row", keep="first")
            types = wrong["field"].replace_strict(
                {name: str(dtype) for name, dtype in declared.items()}, return_dtype=pl.String
            )
            error = pl.format("metadata field {} holds {}, which is not a valid {}", "field", "value", pl.lit(types))
            problem = wrong.select(rule=pl.lit("wrong_dtype"), error=error)
            misfits.append(own[wrong["row"]].select("row", *KEY).hstack(problem.get_columns()))
    if misfits:
        rows = rows.join(pl.concat(misfits), on="row", how="anti", maintain_order="left")
    return rows, misfits, grown


def _with_rule(rule: str, errors: pl.Series) -> pl.Series:
    """Errors with the rule that they break (Struct), null where there is no error."""
    return pl.select(_as_problem(rule, pl.lit(errors))).to_series()
