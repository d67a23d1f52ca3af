"""Which dtype holds all values that JSON files have in one place, at every depth; and which are kept as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from json.encoder import encode_basestring
from typing import Any

import polars as pl

#: Levels of nesting that typed metadata has.
MAX_DEPTH = 64
#: Keys of one nested object, over all rows, up to which they are fields of a struct.
MAX_FIELDS = 1_000

#: Whole numbers up to this one are each a double.
EXACT = 1 << 53

#: What a value is called in a note.
_WORDS = {
    "bool": "booleans",
    "int": "whole numbers",
    "long": "whole numbers",
    "big": "whole numbers beyond 64 bits",
    "huge": "whole numbers of more than 38 digits",
    "float": "fractions",
    "inexact": "numbers with more digits than a double has",
    "str": "texts",
    "list": "arrays",
    "dict": "objects",
}


class Node:
    """The values in one place of all objects."""

    __slots__ = ("fields", "item", "kinds")

    def __init__(self) -> None:
        #: Each kind of value that came, with the first example and its place.
        self.kinds: dict[str, tuple[str, str, int]] = {}
        #: The values of each key of objects, and of the items of arrays.
        self.fields: dict[str, Node] = {}
        self.item: Node | None = None

    def add(self, value: Any, file: str, line: int) -> None:
        """Take in a value."""
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
    """What a value is; None for null."""
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


#: Puts the text in place of a value that has to become one.
Change = Callable[[Any], Any]


def resolve(
    node: Node, path: str, known: pl.DataType | None, numbers: bool, say: Callable[[str], None]
) -> tuple[pl.DataType, Change | None]:
    """The dtype of the values in one place.

    Args:
        node: the values.
        path: the place, for notes.
        known: the dtype that the store has for it.
        numbers: whether numbers may lose digits.
        say: takes a note about values that become text.

    Returns:
        The dtype, and how a value becomes one of it; None if it is one.
    """
    kinds = set(node.kinds)
    if not kinds:
        return known or pl.Null(), None
    if numbers:
        kinds = {"float" if kind == "inexact" else kind for kind in kinds}
    if isinstance(known, pl.String) and kinds != {"str"}:
        say(f"{path!r} holds {_found(node)}: they stay text as in the store, each as it is in the file")
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
        dtype, change = resolve(node.item, f"{path}[]", inner, numbers, say)  # type: ignore[arg-type]
        return pl.List(dtype), None if change is None else _each(change)
    if kinds == {"dict"} and 0 < len(node.fields) <= MAX_FIELDS:
        return _struct(node, path, known, numbers, say)
    if kinds == {"dict"} and node.fields:
        say(f"{path!r} has {len(node.fields):,} different keys: its objects are kept as JSON text")
    elif kinds == {"dict"}:
        say(f"{path!r} holds objects without a key only: they are kept as JSON text")
    else:
        say(
            f"{path!r} holds {_found(node)}: it is kept as text, in which a text is itself, and every other value its "
            "JSON"
        )
    return pl.String(), _as_text


def _whole(kinds: set[str], known: pl.DataType | None) -> pl.DataType:
    if known == pl.Int128() or (known == pl.Float64() and kinds == {"int"}):
        return known
    return pl.Int128() if "big" in kinds else pl.Int64()


def _struct(
    node: Node, path: str, known: pl.DataType | None, numbers: bool, say: Callable[[str], None]
) -> tuple[pl.DataType, Change | None]:
    fields: dict[str, Any] = {}
    if isinstance(known, pl.Struct):
        fields = {field.name: field.dtype for field in known.fields}
    changes: dict[str, Change] = {}
    made: dict[str, pl.DataType] = dict(fields)
    for name, inner in node.fields.items():
        dtype, change = resolve(inner, f"{path}.{name}", fields.get(name), numbers, say)
        made[name] = dtype
        if change is not None:
            changes[name] = change
    return pl.Struct(made), _members(changes) if changes else None


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
    """A text as it is, everything else as JSON text."""
    return value if type(value) is str else json_text(value)


def json_text(value: Any) -> str:
    """JSON, in which a number that came as its text is as it was."""
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
        # A number, or its text.
        yield repr(value) if kind is float else str(value)
