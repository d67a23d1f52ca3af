"""Type inference for JSON: the dtype for all values at a path, at any depth, and which values are kept as strings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from json.encoder import encode_basestring
from typing import Any

import polars as pl

#: Maximum nesting depth of typed metadata.
MAX_DEPTH = 64
#: Maximum number of distinct keys of a nested object, over all rows, for it to become a struct.
MAX_FIELDS = 1_000

#: Integers up to this one are represented exactly by a double.
EXACT = 1 << 53

#: Names of the kinds of values in notes.
_WORDS = {
    "bool": "booleans",
    "int": "integers",
    "long": "integers",
    "big": "integers beyond 64 bits",
    "huge": "integers of more than 38 digits",
    "float": "fractions",
    "inexact": "numbers that exceed the precision of a double",
    "str": "strings",
    "list": "arrays",
    "dict": "objects",
}


class Node:
    """The values at one path of all objects."""

    __slots__ = ("fields", "item", "kinds")

    def __init__(self) -> None:
        #: The kinds of values, each with its first example, file and line.
        self.kinds: dict[str, tuple[str, str, int]] = {}
        #: The values of each key of objects, and the items of arrays.
        self.fields: dict[str, Node] = {}
        self.item: Node | None = None

    def add(self, value: Any, file: str, line: int) -> None:
        """Add a value."""
        kind = kind_of(value)
        if kind is None:
            return
        if kind not in self.kinds:
            self.kinds[kind] = (_example(value), file, line)
        if kind == "dict":
            for name, inner in value.items():
                node = self.fields.get(name)
                if node is None:
                    node = self.fields[name] = Node()
                if inner is not None:
                    node.add(inner, file, line)
        elif kind == "list":
            if self.item is None:
                self.item = Node()
            for inner in value:
                if inner is not None:
                    self.item.add(inner, file, line)


def kind_of(value: Any) -> str | None:
    """The kind of a value; None for null."""
    if value is None:
        return None
    kind = type(value)
    if kind is int:
        if -EXACT <= value <= EXACT:
            return "int"
        if -(2**63) <= value < 2**63:
            return "long"
        return "big" if -(10**38) < value < 10**38 else "huge"
    return kind.__name__ if kind in (bool, float, str, list, dict) else "inexact"


def _example(value: Any) -> str:
    text = json_text(value) if not isinstance(value, dict | list) else ("{...}" if isinstance(value, dict) else "[...]")
    return text if len(text) <= 40 else text[:39] + "…"


#: Converts a value to a string, or converts the values inside of it.
Change = Callable[[Any], Any]


def resolve(
    node: Node, path: str, known: pl.DataType | None, numbers: bool, note: Callable[[str], None]
) -> tuple[pl.DataType, Change | None]:
    """The dtype for the values at one path.

    Args:
        node: the values.
        path: the path, for notes.
        known: the dtype of the field in the store, or None.
        numbers: whether numbers may lose digits.
        note: receives notes about values that are converted to strings.

    Returns:
        The dtype, and the conversion of a value to it, or None if no conversion is needed.
    """
    kinds = set(node.kinds)
    if not kinds:
        return known or pl.Null(), None
    if numbers:
        kinds = {"float" if kind == "inexact" else kind for kind in kinds}
    if isinstance(known, pl.String) and kinds != {"str"}:
        note(f"{path!r} contains {_found(node)}: stored as text, like the existing column, each as it is in the file")
        return pl.String(), _as_text
    if kinds <= {"int", "long", "big"}:
        return _whole(kinds, known), None
    if "float" in kinds and kinds <= ({"int", "float"} | ({"long", "big", "huge"} if numbers else set())):
        return pl.Float64(), None
    simple = {"bool": pl.Boolean(), "str": pl.String()}
    if len(kinds) == 1 and (kind := next(iter(kinds))) in simple:
        return simple[kind], None
    if kinds == {"list"}:
        assert node.item is not None
        inner = known.inner if isinstance(known, pl.List) else None
        dtype, change = resolve(node.item, f"{path}[]", inner, numbers, note)  # type: ignore[arg-type]
        return pl.List(dtype), None if change is None else _each(change)
    if kinds == {"dict"} and 0 < len(node.fields) <= MAX_FIELDS:
        return _struct(node, path, known, numbers, note)
    if kinds == {"dict"} and node.fields:
        note(f"{path!r} has {len(node.fields):,} distinct keys: its objects are stored as JSON text")
    elif kinds == {"dict"}:
        note(f"{path!r} contains only empty objects: they are stored as JSON text")
    else:
        note(f"{path!r} contains {_found(node)}: stored as text, strings as they are and all other values as JSON")
    return pl.String(), _as_text


def _whole(kinds: set[str], known: pl.DataType | None) -> pl.DataType:
    if known == pl.Int128() or (known == pl.Float64() and kinds == {"int"}):
        return known
    return pl.Int128() if "big" in kinds else pl.Int64()


def _struct(
    node: Node, path: str, known: pl.DataType | None, numbers: bool, note: Callable[[str], None]
) -> tuple[pl.DataType, Change | None]:
    fields: dict[str, Any] = {}
    if isinstance(known, pl.Struct):
        fields = {field.name: field.dtype for field in known.fields}
    changes: dict[str, Change] = {}
    dtypes: dict[str, pl.DataType] = dict(fields)
    for name, inner in node.fields.items():
        dtype, change = resolve(inner, f"{path}.{name}", fields.get(name), numbers, note)
        dtypes[name] = dtype
        if change is not None:
            changes[name] = change
    return pl.Struct(dtypes), _members(changes) if changes else None


def _each(change: Change) -> Change:
    return lambda value: [None if item is None else change(item) for item in value]


def _members(changes: dict[str, Change]) -> Change:
    def changed(value: Any) -> Any:
        return {
            name: changes[name](inner) if name in changes and inner is not None else inner
            for name, inner in value.items()
        }

    return changed


def _found(node: Node) -> str:
    parts = [
        f"{_WORDS[kind]} (such as {example}, {file}, line {line:,})"
        for kind, (example, file, line) in list(node.kinds.items())[:3]
    ]
    return " and ".join(parts)


def _as_text(value: Any) -> str:
    """A string unchanged, any other value as JSON."""
    return value if type(value) is str else json_text(value)


def json_text(value: Any) -> str:
    """JSON, with numbers that were read as strings unchanged."""
    return "".join(_pieces(value))


def _pieces(value: Any) -> Iterator[str]:
    kind = type(value)
    if kind is str:
        yield encode_basestring(value)
    elif kind is dict:
        yield "{"
        for number, (name, inner) in enumerate(value.items()):
            yield f"{',' if number else ''}{encode_basestring(name)}:"
            yield from _pieces(inner)
        yield "}"
    elif kind is list:
        yield "["
        for number, inner in enumerate(value):
            if number:
                yield ","
            yield from _pieces(inner)
        yield "]"
    elif value is None or kind is bool:
        yield {None: "null", True: "true", False: "false"}[value]
    else:
        # A number, or a number read as a string.
        yield repr(value) if kind is float else str(value)
