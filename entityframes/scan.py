"""A LazyFrame whose projection, limit and simple predicates reach the database."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import polars as pl
from polars.io.plugins import register_io_source

from entityframes.engines.predicates import Both, Column, Compare, Either, IsIn, IsNull, Predicate, literal_value

_COMPARISONS = {"Eq": "=", "NotEq": "<>", "Lt": "<", "LtEq": "<=", "Gt": ">", "GtEq": ">="}
_MIRRORED = {"=": "=", "<>": "<>", "<": ">", "<=": ">=", ">": "<", ">=": "<="}

#: More values than this in an is_in are left to Polars.
_MAX_VALUES = 10_000


@dataclass(frozen=True)
class ScanQuery:
    """What a scan asks of the store."""

    #: Output columns, in order.
    columns: tuple[str, ...]
    #: Rows that fail it need not be returned; rows that pass it must be.
    where: Predicate | None
    #: At most so many rows; set only where the predicate is decided by the database alone.
    limit: int | None


def lazy_frame(
    schema: Mapping[str, pl.DataType],
    columns: Mapping[str, Column],
    read: Callable[[ScanQuery], Iterator[pl.DataFrame]],
    *,
    name: str,
) -> pl.LazyFrame:
    """A LazyFrame over `read`.

    Args:
        schema: output columns and dtypes.
        columns: where each output column lives.
        read: yields frames with the columns of a query.
        name: what the query plan calls it.
    """

    def source(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        wanted = list(schema) if with_columns is None else with_columns
        where = None
        if predicate is not None:
            tree = _without_dynamic(_tree(predicate))
            predicate = None if tree is None else _expression(tree)
            where = None if tree is None else _translate(tree, columns)
        needed = dict.fromkeys([*wanted, *(predicate.meta.root_names() if predicate is not None else [])])
        query = ScanQuery(tuple(needed), where, n_rows if predicate is None else None)
        left = n_rows
        with closing(read(query)) as frames:  # type: ignore[type-var]
            for frame in frames:
                kept = (frame if predicate is None else frame.filter(predicate)).select(wanted)
                yield kept if left is None else kept.head(left)
                if left is not None:
                    left -= kept.height
                    if left <= 0:
                        return

    return register_io_source(source, schema=dict(schema), explain_name=name)


def _tree(expression: pl.Expr) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return json.loads(expression.meta.serialize(format="json"))


def _expression(tree: Any) -> pl.Expr:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pl.Expr.deserialize(io.BytesIO(json.dumps(tree).encode()), format="json")


def _without_dynamic(tree: Any) -> Any:
    """The tree without the hints that a limit above the scan adds, which nothing but the optimiser can evaluate."""
    if isinstance(tree, dict) and str(tree.get("Display", {}).get("fmt_str", "")).startswith("dynamic_pred"):
        return None
    both = _operator(tree, "And")
    if both is None:
        return tree
    left, right = (_without_dynamic(side) for side in both)
    if left is None or right is None:
        return right if left is None else left
    return {"BinaryExpr": {"left": left, "op": "And", "right": right}}


def _operator(tree: Any, *names: str) -> tuple[Any, Any] | None:
    """Both sides of a binary operator that has one of the names."""
    inner = tree.get("BinaryExpr") if isinstance(tree, dict) else None
    return (inner["left"], inner["right"]) if inner and inner["op"] in names else None


def _translate(tree: Any, columns: Mapping[str, Column]) -> Predicate | None:
    """What of a predicate can be decided by the database; never raises, because Polars decides the rest."""
    try:
        return _predicate(tree, columns)
    except Exception:
        return None


def _predicate(tree: Any, columns: Mapping[str, Column]) -> Predicate | None:
    both = _operator(tree, "And", "LogicalAnd")
    if both is not None:
        parts = [part for part in (_predicate(side, columns) for side in both) if part is not None]
        return Both(tuple(parts)) if parts else None
    either = _operator(tree, "Or", "LogicalOr")
    if either is not None:
        parts = [part for part in (_predicate(side, columns) for side in either) if part is not None]
        return Either(tuple(parts)) if len(parts) == 2 else None
    compared = _operator(tree, *_COMPARISONS)
    if compared is not None:
        return _comparison(_COMPARISONS[tree["BinaryExpr"]["op"]], *compared, columns)
    function = tree.get("Function")
    return None if function is None else _function(function, columns)


def _comparison(op: str, left: Any, right: Any, columns: Mapping[str, Column]) -> Predicate | None:
    column = _column(left, columns)
    if column is None:
        column, right, op = _column(right, columns), left, _MIRRORED[op]
    if column is None:
        return None
    value = literal_value(column, _constant(right))
    return None if value is None else Compare(column, op, value)


def _function(function: Any, columns: Mapping[str, Column]) -> Predicate | None:
    kind, inputs = function["function"].get("Boolean"), function["input"]
    column = _column(inputs[0], columns)
    if column is None:
        return None
    if kind in ("IsNull", "IsNotNull"):
        return IsNull(column, kind == "IsNotNull")
    if isinstance(kind, dict) and "IsIn" in kind:
        items = _constant(inputs[1])
        items = (
            items.explode(empty_as_null=False) if items.dtype == pl.List or isinstance(items.dtype, pl.Array) else items
        )
        if kind["IsIn"].get("nulls_equal") or not 0 < len(items) <= _MAX_VALUES:
            return None
        values = [
            literal_value(column, items[place : place + 1]) for place in range(len(items)) if items[place] is not None
        ]
        return IsIn(column, tuple(values)) if values and None not in values else None
    if isinstance(kind, dict) and "IsBetween" in kind:
        low, high = (literal_value(column, _constant(side)) for side in inputs[1:3])
        # Open ends are closed here and opened again by Polars.
        return None if low is None or high is None else Both((Compare(column, ">=", low), Compare(column, "<=", high)))
    return None


def _column(tree: Any, columns: Mapping[str, Column]) -> Column | None:
    return columns.get(tree["Column"]) if isinstance(tree, dict) and "Column" in tree else None


def _constant(tree: Any) -> pl.Series:
    """The value and dtype of a constant expression, as Polars itself evaluates it."""
    expression = _expression(tree)
    if expression.meta.root_names():
        raise ValueError("not a constant")
    return pl.select(expression).to_series()
