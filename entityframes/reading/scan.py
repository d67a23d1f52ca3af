"""A LazyFrame that pushes projections, limits and simple predicates down to the database."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import polars as pl
from polars.io.plugins import register_io_source

from entityframes.engines.predicates import (
    And,
    Column,
    Compare,
    IsIn,
    IsNull,
    MetadataField,
    Or,
    Predicate,
    literals,
)
from entityframes.interrupt import Interrupt
from entityframes.progress import Progress, Reporter

#: Predicates with more values in an is_in, or with more bytes, are not pushed down.
_MAX_VALUES = 10_000
_MAX_BYTES = 4_000_000

#: In a filter, == and its null-aware variant are equivalent if the constant is not null.
_COMPARISONS = {"Eq": "=", "EqValidity": "=", "NotEq": "<>", "Lt": "<", "LtEq": "<=", "Gt": ">", "GtEq": ">="}
_MIRRORED = {"=": "=", "<>": "<>", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_JUNCTIONS: dict[str, type[And | Or]] = {"And": And, "LogicalAnd": And, "Or": Or, "LogicalOr": Or}


#: The interval, in seconds, at which a scan that waits for the database checks for Ctrl-C by running a trivial query.
_POLL_SECONDS = 0.05
_TRIVIAL_QUERY = pl.LazyFrame({"nothing": [0]}).select(pl.col("nothing") + 1)
#: Pauses, in seconds, before the queries that make Polars release a source from which it needs no more rows.
_RELEASE_AFTER = (0.1, 1.0, 10.0)


@dataclass(frozen=True)
class ScanQuery:
    """The query of a scan."""

    #: Output columns, in order.
    columns: tuple[str, ...]
    #: All rows that satisfy it must be returned; further rows may be.
    where: Predicate | None
    #: The maximum number of rows; never combined with a predicate.
    limit: int | None
    #: Cancels the query.
    interrupt: Interrupt = field(default_factory=Interrupt, compare=False)


def lazy_frame(
    schema: Mapping[str, pl.DataType],
    columns: Mapping[str, Column],
    read: Callable[[ScanQuery], Iterator[pl.DataFrame]],
    *,
    name: str,
    progress: Progress = False,
    cancel: threading.Event | None = None,
    count: Callable[[], int | None] = lambda: None,
) -> pl.LazyFrame:
    """A LazyFrame over `read`.

    Args:
        schema: output columns and dtypes.
        columns: where each output column is stored.
        read: yields frames with the columns of a query; a generator is closed when no more rows are needed.
        name: the name of the source in the query plan.
        progress, cancel: of each query.
        count: the number of rows without a filter and a limit.
    """

    def source(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        output = list(schema) if with_columns is None else with_columns
        used = [] if predicate is None else predicate.meta.root_names()
        # Polars passes both a limit and a predicate for head() followed by filter(): the limit applies first.
        where = translate(predicate, columns) if predicate is not None and n_rows is None else None
        query = ScanQuery(tuple(dict.fromkeys([*output, *used])), where, n_rows, Interrupt(cancel))
        frames = read(query)
        remaining = n_rows
        # With a limit or a filter, it is not known how many rows the database returns.
        total = count if n_rows is None and where is None else None
        try:
            with Reporter(progress, total, what="scan") as reporter:
                for frame in _awaited(frames, query.interrupt):
                    reporter.advance(frame.height)
                    if remaining is not None:
                        frame = frame.head(remaining)
                        remaining -= frame.height
                    # Polars relies on the source to apply the predicate.
                    yield (frame if predicate is None else frame.filter(predicate)).select(output)
                    if remaining == 0:
                        return
        finally:
            close = getattr(frames, "close", None)
            if close is not None:
                close()

    return register_io_source(source, schema=dict(schema), explain_name=name)


def _awaited(frames: Iterator[pl.DataFrame], interrupt: Interrupt) -> Iterator[pl.DataFrame]:
    """Yield the frames, which are read in a separate thread, and cancel the query on Ctrl-C.

    While Polars collects, no Python code runs in the main thread; only a call of Polars notices a Ctrl-C.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="entityframes-scan") as thread:
        while True:
            following = thread.submit(next, frames, None)
            try:
                interrupt.check()
                while not wait([following], _POLL_SECONDS).done:
                    interrupt.check()
                    _TRIVIAL_QUERY.collect()
            except BaseException:
                while not wait([following], _POLL_SECONDS).done:
                    interrupt.fire()
                raise
            frame = following.result()
            if frame is None:
                return
            with _released():
                yield frame


@contextmanager
def _released() -> Iterator[None]:
    """Run trivial queries while the source is suspended.

    Polars releases a source from which it needs no more rows only during its next query, which may be hours away, while
    a transaction stays open.
    """
    done = threading.Event()

    def query() -> None:
        for seconds in _RELEASE_AFTER:
            if done.wait(seconds):
                return
            _TRIVIAL_QUERY.collect()

    threading.Thread(target=query, name="entityframes-release", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def translate(predicate: pl.Expr, columns: Mapping[str, Column]) -> Predicate | None:
    """The part of a predicate that the database can evaluate, or None. Never raises; Polars applies the full predicate.

    Args:
        predicate: as passed by Polars to a scan, with types coerced and constants folded.
        columns: where each output column is stored.
    """
    try:
        if len(predicate.meta.serialize()) > _MAX_BYTES:
            return None
        return _predicate(_Node(json.loads(predicate.meta.serialize(format="json")), predicate), columns)
    except (Exception, pl.exceptions.PanicException):
        return None


@dataclass(frozen=True)
class _Node:
    """A node of a predicate: its JSON has the structure, its expression the constants.

    Constants are not read from the JSON, because NaN and infinities are null there, and because Polars does not
    round-trip about a third of all floats exactly.
    """

    tree: Any
    expression: pl.Expr

    def inputs(self, *trees: Any) -> list[_Node]:
        """The inputs of this node, given their JSON."""
        expressions = self.expression.meta.pop()[::-1]
        return [_Node(tree, expression) for tree, expression in zip(trees, expressions, strict=True)]

    def column(self, columns: Mapping[str, Column]) -> Column | None:
        """The column that this node refers to, or None."""
        name = self.tree.get("Column")
        # Compare the names, in case a later version of Polars orders the inputs differently.
        return columns.get(name) if name is not None and self.expression.meta.root_names() == [name] else None

    def constant(self) -> pl.Series | None:
        """The constant value of this node as a Series of length 1; None if it is null or not constant."""
        if not _is_constant(self.tree) or self.expression.meta.root_names():
            return None
        value = pl.select(self.expression).to_series()
        return value if len(value) == 1 and value.null_count() == 0 else None


def _is_constant(tree: Any) -> bool:
    [(kind, inner)] = tree.items()
    if kind == "BinaryExpr":
        return _is_constant(inner["left"]) and _is_constant(inner["right"])
    return (
        kind == "Literal"
        or (kind == "Cast" and _is_constant(inner["expr"]))
        or (kind == "Alias" and _is_constant(inner[0]))
    )


def _predicate(node: _Node, columns: Mapping[str, Column]) -> Predicate | None:
    [(kind, inner)] = node.tree.items()
    if kind == "Column":
        return _is_boolean(node, columns, "true")
    if (
        kind == "Ternary"
        and _is_never(inner["falsy"])
        and inner["truthy"] == {"Literal": {"Scalar": {"Boolean": True}}}
    ):
        # How Polars rewrites a comparison with a constant outside the range of the column's dtype.
        tested = [part for part in node.expression.meta.pop() if part.meta.root_names()]
        return _predicate(_Node(inner["predicate"], tested[0]), columns) if len(tested) == 1 else None
    if kind == "BinaryExpr":
        left, right = node.inputs(inner["left"], inner["right"])
        if inner["op"] in _JUNCTIONS:
            return _junction(_JUNCTIONS[inner["op"]], [_attempt(left, columns), _attempt(right, columns)])
        return _comparison(_COMPARISONS[inner["op"]], left, right, columns) if inner["op"] in _COMPARISONS else None
    if kind == "Function":
        return _function(inner["function"].get("Boolean"), node.inputs(*inner["input"]), columns)
    return None


def _is_never(tree: Any) -> bool:
    return tree in ({"Literal": {"Scalar": {"Null": "Boolean"}}}, {"Literal": {"Scalar": {"Boolean": False}}})


def _attempt(node: _Node, columns: Mapping[str, Column]) -> Predicate | None:
    """The predicate of one side of a junction, or None; the other side may still be usable."""
    try:
        return _predicate(node, columns)
    except (Exception, pl.exceptions.PanicException):
        return None


def _junction(kind: type[And | Or], sides: list[Predicate | None]) -> Predicate | None:
    known = [side for side in sides if side is not None]
    if len(known) < 2:
        return known[0] if known and kind is And else None
    # Flatten chains of the same operator.
    return kind(tuple(part for side in known for part in (side.parts if isinstance(side, kind) else (side,))))


def _is_boolean(node: _Node, columns: Mapping[str, Column], value: str) -> Predicate | None:
    column = node.column(columns)
    return Compare(column, "=", value) if isinstance(column, MetadataField) and column.dtype == pl.Boolean else None


def _comparison(op: str, left: _Node, right: _Node, columns: Mapping[str, Column]) -> Predicate | None:
    if not left.expression.meta.root_names():
        left, right, op = right, left, _MIRRORED[op]
    constant = right.constant()
    if constant is None:
        return None
    if "Cast" in left.tree:
        return _float_comparison(op, left, constant, columns)
    column = left.column(columns)
    values = None if column is None else literals(column, op, constant)
    if column is None or values is None:
        return None
    return Compare(column, op, values[0]) if values else IsIn(column, ())


def _float_comparison(op: str, cast: _Node, constant: pl.Series, columns: Mapping[str, Column]) -> Predicate | None:
    """The comparison of an integer column, cast to Float64, with a float.

    Below 2**53 the rounding of the cast makes no difference, because it preserves the order.
    """
    inner, value = cast.tree["Cast"], constant[0]
    [node] = cast.inputs(inner["expr"])
    column = node.column(columns)
    if not isinstance(column, MetadataField) or column.dtype is None or not column.dtype.is_integer():
        return None
    if inner["dtype"] != {"Literal": "Float64"} or constant.dtype != pl.Float64 or not abs(value) < 2**53:
        return None
    if op in ("<", "<="):
        return Compare(column, op if value.is_integer() else "<=", math.floor(value))
    if op in (">", ">="):
        return Compare(column, op if value.is_integer() else ">=", math.ceil(value))
    return Compare(column, op, int(value)) if value.is_integer() else None


def _function(kind: Any, inputs: list[_Node], columns: Mapping[str, Column]) -> Predicate | None:
    if kind == "Not":
        # Only NOT of a Boolean column, which is a comparison.
        return _is_boolean(inputs[0], columns, "false")
    column = inputs[0].column(columns)
    if column is None:
        return None
    if kind in ("IsNull", "IsNotNull"):
        return IsNull(column, kind == "IsNotNull")
    if not isinstance(kind, dict):
        return None
    if "IsIn" in kind and not kind["IsIn"]["nulls_equal"]:
        return _is_in(column, inputs[1].constant())
    if "IsBetween" in kind:
        low, high = (side.constant() for side in inputs[1:])
        lowest = None if low is None else literals(column, ">=", low)
        highest = None if high is None else literals(column, "<=", high)
        # Open bounds are treated as closed; Polars applies the exact predicate.
        ends = [
            Compare(column, ">=", lowest[0]) if lowest else None,
            Compare(column, "<=", highest[0]) if highest else None,
        ]
        return _junction(And, list(ends))
    return None


def _is_in(column: Column, constant: pl.Series | None) -> Predicate | None:
    if constant is None or not isinstance(constant.dtype, pl.List | pl.Array):
        return None
    items = constant[0].drop_nulls().unique(maintain_order=True)
    if items.is_empty():
        return IsIn(column, ())
    values = literals(column, "=", items) if len(items) <= _MAX_VALUES else None
    return None if values is None else IsIn(column, values)
