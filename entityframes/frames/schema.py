"""Entity frames and id frames: their creation, columns and keys.

An entity frame has the columns ``entity_type``, ``id`` and optionally ``content`` (all String) and ``metadata`` (a
Struct, or a String with a JSON object). Other columns are rejected, so that nothing is silently dropped, except for
those that the store adds to its results.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, overload

import polars as pl

from entityframes import forks
from entityframes.errors import SchemaError
from entityframes.frames.like import FrameLike, NotLazy
from entityframes.frames.sources import as_frame
from entityframes.frames.utf8 import readable
from entityframes.metadata import dtypes

#: The columns that identify an entity, in key order.
KEY = ("entity_type", "id")

#: Columns that methods of the store add to entities; an entity frame may have them, and they are not written.
STORE_COLUMNS = frozenset({"found", "exists", "content_hash", "created_at", "updated_at", "row"})

#: Columns that `read` and `get` add to what was written; they are not metadata unless explicitly selected.
ADDED_COLUMNS = ("content_hash", "created_at", "updated_at", "found")

#: A metadata field with one of these names is returned by `read` as the column ``metadata.<name>``.
ENTITY_COLUMNS = ("entity_type", "id", "content", "metadata", "content_hash", "created_at", "updated_at")

#: The separator between the parts of an id that is built from several columns.
ID_SEPARATOR = "|"

#: Whether a row of an id frame is not a valid key.
_INVALID_KEY = pl.any_horizontal(pl.col(KEY).is_null(), pl.col(KEY).str.contains("\0", literal=True).fill_null(True))

#: Dtypes besides integers that `entities` and `ids` convert to ids without loss.
_ID_DTYPES = (pl.String, pl.Categorical, pl.Enum, pl.Date)


@overload
def entities(
    df: pl.LazyFrame,
    entity_type: str,
    *,
    id: str | pl.Expr | Sequence[str],
    content: str | pl.Expr | None = None,
    metadata: Iterable[str] | None = None,
) -> pl.LazyFrame: ...
@overload
def entities(
    df: NotLazy,
    entity_type: str,
    *,
    id: str | pl.Expr | Sequence[str],
    content: str | pl.Expr | None = None,
    metadata: Iterable[str] | None = None,
) -> pl.DataFrame: ...
def entities(
    df: FrameLike,
    entity_type: str,
    *,
    id: str | pl.Expr | Sequence[str],
    content: str | pl.Expr | None = None,
    metadata: Iterable[str] | None = None,
) -> pl.DataFrame | pl.LazyFrame:
    """Make an entity frame from a dataframe.

    Args:
        df: a Polars DataFrame or LazyFrame; any object with the Arrow PyCapsule interface (pandas, PyArrow, a DuckDB
            relation); a dict of columns; or a list or an iterator of dicts, dataclasses or models, which is read
            completely, and in which a key that some of them lack becomes null.
        entity_type: the type of all rows.
        id: the column with the ids, an expression, or a list of columns whose values are joined with ``|``. A ``|`` or
            backslash within a value is escaped with a backslash, so that different values never make the same id.
            Integers, dates and categories are converted to text; in a list of columns also floats, whole numbers
            without a decimal point.
        content: the column or expression with the text of each entity; nulls become ``""``. None makes a frame
            without content: stored content is kept, and a new entity gets ``""``.
        metadata: the columns to keep as typed metadata. None keeps all columns except those named by `id` and
            `content` and those that the store adds (content_hash, created_at, updated_at, found); a UserWarning names
            the latter if the frame has no content_hash, since it was probably not read from the store. A column
            ``metadata.created_at``, as `EntityStore.read` names it, is kept as ``created_at``.

    Returns:
        A DataFrame (a LazyFrame for a LazyFrame) with ``entity_type`` and ``id`` String, ``content`` String unless it
        is None, and ``metadata`` Struct unless there is no metadata; one row per row of `df`, in its order.

    Raises:
        SchemaError: a column is missing, its dtype cannot be used as id, content or metadata, or an argument has the
            wrong type; or a value of an object has another type than the others, which the message names with its row.
        ClosedError: this process was forked from one that had used Polars or opened a store.

    Examples:
        >>> people = pl.DataFrame({"email": ["ada@example.org"], "bio": ["First programmer"], "born": [1815]})
        >>> rows = ef.entities(people, "person", id="email", content="bio")
        >>> rows.row(0)
        ('person', 'ada@example.org', 'First programmer', {'born': 1815})
    """
    forks.check()
    _check_arguments(df, entity_type, id, content)
    frame = df if isinstance(df, pl.DataFrame | pl.LazyFrame) else as_frame(df)
    schema = frame.collect_schema()
    names = list(schema)
    parts = [] if isinstance(id, str | pl.Expr) else list(id)
    if len(parts) == 1:
        id = parts.pop()
    taken = {column for column in (id, content) if isinstance(column, str)}
    kept = kept_columns(names, taken) if metadata is None else list(metadata)
    _require(names, [*taken, *parts, *kept], "entities()", index=getattr(getattr(df, "index", None), "names", ()))

    for name in kept:
        dtypes.check_dtype(name, schema[name])

    columns = [
        pl.lit(entity_type, pl.String).alias("entity_type"),
        (joined(parts, schema) if parts else _named(id)).alias("id"),  # type: ignore[arg-type]
    ]
    texts = ["id"] if content is None else ["id", "content"]
    if content is not None:
        columns.append(_named(content).alias("content"))
    if kept:
        columns.append(pl.struct(pl.col(name).alias(own_name(name, kept)) for name in kept).alias("metadata"))
    lazy = frame.lazy()
    output = lazy.select(columns).collect_schema()
    _check_id_dtype("id" if parts else id, output["id"])  # type: ignore[arg-type]
    if content is not None and not isinstance(output["content"], pl.String | pl.Categorical | pl.Enum | pl.Null):
        raise SchemaError(
            f"content {_show(content)} is {output['content']}, not text",
            advice="cast it to pl.String, or name another column as content",
        )
    result = lazy.select(columns).with_columns(pl.col(texts).cast(pl.String))
    if content is not None:
        result = result.with_columns(pl.col("content").fill_null(""))
    return result if isinstance(frame, pl.LazyFrame) else result.collect()


def kept_columns(names: Sequence[str], taken: Iterable[str]) -> list[str]:
    """The columns of a frame that are metadata by default; warns if columns of the user are left out.

    Args:
        names: all columns.
        taken: the columns used as id or content.
    """
    left = [name for name in ADDED_COLUMNS if name in names and name not in taken]
    if left and "content_hash" not in left:
        warnings.warn(
            f"columns {', '.join(map(repr, left))} are left out, because the store adds columns of these names to "
            "results: select the metadata columns with metadata=, or rename them",
            UserWarning,
            stacklevel=3,
        )
    return [name for name in names if name not in taken and name not in left]


def own_name(name: str, among: Iterable[str]) -> str:
    """The original name of a metadata column that `read` has renamed to ``metadata.<name>``."""
    bare = name.removeprefix("metadata.")
    return bare if bare != name and bare in ENTITY_COLUMNS and bare not in among else name


def joined(parts: Sequence[str], schema: Mapping[str, pl.DataType], separator: str = ID_SEPARATOR) -> pl.Expr:
    """Ids built from several columns; null where a part is null.

    Args:
        parts: the columns.
        schema: their dtypes.
        separator: the separator of the parts. Within a part, the separator and backslashes are escaped with a
            backslash, so that the parts can be recovered from the id.

    Raises:
        SchemaError: the separator is empty or contains a backslash, or the dtype of a column has no stable text
            representation.
    """
    if not separator or "\\" in separator:
        raise SchemaError(f"id separator {separator!r}", advice="it must not be empty or contain a backslash")
    texts = [_part(name, schema[name]) for name in parts]
    if len(separator) == 1:
        escaped = [text.str.replace_all(f"[{re.escape(separator)}\\\\]", "\\${0}") for text in texts]
    else:
        # Also a prefix of the separator at the end of a part, which the following text could complete.
        starts = [re.escape(separator[:length]) + r"\Z" for length in range(len(separator) - 1, 0, -1)]
        pattern = re.compile("|".join([r"\\", re.escape(separator), *starts]))
        escaped = [
            text.map_elements(
                lambda part: pattern.sub(lambda found: "".join(f"\\{letter}" for letter in found[0]), part),
                return_dtype=pl.String,
            )
            for text in texts
        ]
    return pl.concat_str(escaped, separator=separator)


def _part(name: str, dtype: pl.DataType) -> pl.Expr:
    """The text of a part of an id."""
    column = pl.col(name)
    if dtype.is_float():
        whole = (column == column.round()) & (column.abs() < 1 << 53)
        number = pl.when(whole).then(column).cast(pl.Int64).cast(pl.String)
        return pl.when(column.is_not_nan()).then(pl.coalesce(number, column.cast(pl.Float64).cast(pl.String)))
    if dtype != pl.Null:
        _check_id_dtype(name, dtype)
    return column.cast(pl.String)


def ids(entity_type: str, ids: Iterable[Any]) -> pl.DataFrame:
    """Make an id frame.

    Args:
        entity_type: the type of all rows.
        ids: a Series, list or other iterable of strings or integers.

    Returns:
        A DataFrame with ``entity_type`` and ``id``, both String; one row per id, in order.

    Raises:
        SchemaError: `ids` is a single string, or has values of mixed types or of a type that cannot be an id.
        ClosedError: this process was forked from one that had used Polars or opened a store.

    Examples:
        >>> ef.ids("note", [1, 2]).rows()
        [('note', '1'), ('note', '2')]
    """
    forks.check()
    if not isinstance(entity_type, str):
        name = type(entity_type).__name__
        raise SchemaError(f"entity_type must be a string, got {name}", advice="pass the type before the ids")
    if isinstance(ids, str | bytes):
        raise SchemaError("ids() expects a list or Series, got one string", advice="wrap it in a list")
    try:
        series = ids if isinstance(ids, pl.Series) else pl.Series("id", list(ids), strict=True)
    except (TypeError, pl.exceptions.PolarsError) as error:
        raise SchemaError(f"ids() expects strings or integers, not a mixture: {error}") from error
    if series.dtype == pl.Null:
        series = series.cast(pl.String)
    _check_id_dtype("ids", series.dtype)
    return pl.DataFrame({"id": series.cast(pl.String)}).select(
        pl.lit(entity_type, pl.String).alias("entity_type"), "id"
    )


def check_entity_schema(schema: Mapping[str, pl.DataType], expected: Iterable[str] = ()) -> None:
    """Check that a schema is that of an entity frame.

    Args:
        schema: columns and dtypes.
        expected: additional required columns, with hashes in hex.

    Raises:
        SchemaError: columns are missing, unknown or have the wrong dtype; names all of them.
    """
    hashes = list(expected)
    _require(list(schema), [*KEY, *hashes], "an entity frame")
    known = {*KEY, "content", "metadata", *hashes, *STORE_COLUMNS}
    unknown = [name for name in schema if name not in known]
    if unknown:
        raise SchemaError(
            f"unknown columns {', '.join(map(repr, unknown))} (names are case-sensitive): an entity frame has "
            "entity_type, id, content and metadata",
            advice="put other columns into metadata, for example with entityframes.entities(df, type, id=...)",
        )
    texts = [name for name in ("content", *hashes) if name in schema and (name == "content" or schema[name] != pl.Null)]
    _check_text(schema, [*KEY, *texts])
    metadata = schema.get("metadata", pl.Null())
    if isinstance(metadata, pl.Struct):
        for field in metadata.fields:
            dtypes.check_dtype(field.name, dtypes.instance(field.dtype))
    elif metadata not in (pl.String, pl.Binary, pl.Null):
        raise SchemaError(
            f"column 'metadata' is {metadata}", advice="it must be a Struct, or a String with JSON objects"
        )


def check_id_schema(schema: Mapping[str, pl.DataType]) -> None:
    """Check that a schema is that of an id frame; columns other than the key are ignored.

    Raises:
        SchemaError: ``entity_type`` or ``id`` is missing or is not text.
    """
    _require(list(schema), KEY, "an id frame")
    _check_text(schema, KEY)


def check_not_all_null(frame: pl.DataFrame, nulls: str = "write") -> None:
    """Check that no required column of a frame consists of nulls only.

    Args:
        frame: an entity frame.
        nulls: "keep" if null content means that the stored content is kept; content is then not required.

    Raises:
        SchemaError: a required column consists of nulls only; names all such columns.
    """
    needed = [*KEY, "content"] if "content" in frame.columns and nulls == "write" else KEY
    empty = [name for name in needed if frame.height and frame[name].null_count() == frame.height]
    if empty:
        raise SchemaError(f"columns {', '.join(map(repr, empty))} contain only nulls")


def _check_arguments(df: Any, entity_type: Any, id: Any, content: Any) -> None:
    if isinstance(df, str) and not isinstance(entity_type, str):
        raise SchemaError(
            f"entities() got a string and then {type(entity_type).__name__}", advice="pass the frame before its type"
        )
    if not isinstance(entity_type, str):
        raise SchemaError(
            f"entity_type must be a string, got {type(entity_type).__name__}; a frame with the columns entity_type, id "
            "and content is already an entity frame"
        )
    several = isinstance(id, list | tuple) and bool(id) and all(isinstance(column, str) for column in id)
    for name, column in (("id", pl.lit("") if several else id), ("content", content)):
        if not isinstance(column, str | pl.Expr) and not (name == "content" and column is None):
            raise SchemaError(f"{name} must be a column name or an expression, got {type(column).__name__}")


def _named(column: str | pl.Expr) -> pl.Expr:
    return pl.col(column) if isinstance(column, str) else column


def _show(column: str | pl.Expr | None) -> str:
    return repr(column) if isinstance(column, str) else "expression"


def _require(present: list[str], needed: Iterable[str], what: str, index: Iterable[Any] = ()) -> None:
    there = set(present)
    missing = [name for name in dict.fromkeys(needed) if name not in there]
    if of_index := [name for name in missing if name in index]:
        raise SchemaError(
            f"{what} needs columns {', '.join(map(repr, of_index))}, which are in the index of the frame",
            advice="pass frame.reset_index()",
        )
    if missing:
        raise SchemaError(
            f"{what} needs columns {', '.join(map(repr, missing))}, which are missing "
            f"(names are case-sensitive); the frame has {', '.join(map(repr, present)) or 'no columns'}",
            advice=_MAKE.get(what) or did_you_mean(missing, present),
        )


#: How to make what an argument has to be.
_MAKE = {
    "an entity frame": "make one with entityframes.entities(frame, entity_type, id=...)",
    "an id frame": "make one with entityframes.ids(entity_type, ids)",
}


def did_you_mean(missing: Iterable[str], present: Iterable[str]) -> str | None:
    """A question about the present names that are similar to missing ones; None if there are none."""
    lower = {name.lower(): name for name in present}
    close = [lower[found] for name in missing for found in get_close_matches(name.lower(), lower, 1)]
    return f"did you mean {', '.join(map(repr, dict.fromkeys(close)))}?" if close else None


def _check_text(schema: Mapping[str, pl.DataType], names: Iterable[str]) -> None:
    # Binary is text whose encoding is validated row by row later.
    wrong = [name for name in names if schema[name] not in (pl.String, pl.Binary)]
    if wrong:
        found = ", ".join(f"{name!r} is {schema[name]}" for name in wrong)
        raise SchemaError(f"{found}", advice="cast to pl.String, or create the frame with entityframes.entities()")


def _check_id_dtype(column: str | pl.Expr, dtype: pl.DataType) -> None:
    if not (dtype.is_integer() or isinstance(dtype, _ID_DTYPES)):
        if dtype.is_float():
            raise SchemaError(
                f"id {_show(column)} is {dtype}, which has no stable text representation",
                advice="cast whole numbers to Int64 "
                "first (pandas converts integers with missing values to floats: .astype('Int64'))",
            )
        raise SchemaError(
            f"id {_show(column)} is {dtype}, which has no stable text representation",
            advice="cast it to pl.String first",
        )


def usable_ids(frame: pl.DataFrame) -> pl.DataFrame:
    """The key columns of an id frame as displayable text, and ``usable`` Boolean: whether they are a valid key.

    Values that are null, not UTF-8, or contain a NUL character are not valid.
    """
    keys, problem = readable(frame[[*KEY]])
    return keys.with_columns(usable=pl.lit(problem).is_null() & ~_INVALID_KEY)


def types_of(frame: pl.DataFrame) -> pl.Series:
    """The valid entity types of a frame, in order of first occurrence."""
    each = frame.select("entity_type").unique(maintain_order=True)
    return usable_ids(each.with_columns(id=pl.lit(""))).filter("usable")["entity_type"]


def in_key_order(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows sorted by the bytes of the key. Sorting by one column after the other is faster than by both at once."""
    one_type = rows.height < 2 or rows["entity_type"].n_unique() == 1
    if one_type and rows["id"].is_sorted():
        # Already split by key, or read from a sorted file.
        return rows
    order = rows[[*KEY]].with_row_index("position").sort("id")
    if not one_type:
        order = order.sort("entity_type", maintain_order=True)
    return rows[order["position"]]


def numbered(frame: pl.DataFrame, start: int = 0) -> pl.DataFrame:
    """The frame with the position of each row in a UInt32 column ``row``, counted from `start`."""
    # Frames that the store has returned may have a column of this name.
    return (frame.drop("row") if "row" in frame.columns else frame).with_row_index("row", start)


def readable_keys(frame: pl.DataFrame) -> pl.DataFrame:
    """row, entity_type and id of rows as displayable text, whatever bytes they contain."""
    return readable(frame[["row", *KEY]])[0]
