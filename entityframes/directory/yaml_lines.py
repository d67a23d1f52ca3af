"""Formatting of front matter values as lines of YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

from yaml.resolver import Resolver

from entityframes.directory.frontmatter import DEPTH, UNSEEN, Node, core_json
from entityframes.metadata.canonical_json import number_text


class Number(NamedTuple):
    """A number in the notation of canonical JSON."""

    text: str


def _number(text: str) -> Number:
    return Number(number_text(text))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_decode = json.JSONDecoder(parse_int=_number, parse_float=_number, parse_constant=_refuse_constant).decode


def values(metadata: str) -> dict[str, Any]:
    """The values of a JSON object, with numbers as `Number`.

    Raises:
        ValueError: `metadata` is not a JSON object.
    """
    found = _decode(metadata)
    if type(found) is not dict:
        raise ValueError("metadata is not a JSON object")
    return found


def value_of(node: Node) -> Any:
    """The value of a node, in the form returned by `values`."""
    if node.kind == "scalar":
        return _decode(node.json)
    parts = [value_of(child) for child in node.nodes]
    return parts if node.kind == "list" else dict(zip((key for *_, key in node.keys), parts, strict=True))


def block(value: Any, indent: str, quoted: bool) -> Iterator[str]:
    """Lines of YAML for a non-empty mapping or list."""
    if len(indent) >= 2 * DEPTH:
        raise ValueError(f"nesting deeper than {DEPTH}")
    if type(value) is dict:
        for key, item in value.items():
            name = _name(key, quoted)
            if len(name) > 1000:  # YAML requires the colon within 1,024 characters
                yield f"{indent}? {double_quoted(key)}"
                name = ""
            yield from entry(f"{indent}{name}:", item, indent, quoted)
    else:
        for item in value:
            if item and type(item) in (dict, list):
                first, *others = block(item, indent + "  ", quoted)
                yield f"{indent}- {first[len(indent) + 2 :]}"
                yield from others
            else:
                yield from entry(f"{indent}-", item, indent, quoted)


def entry(head: str, item: Any, indent: str, quoted: bool) -> Iterator[str]:
    """Lines of YAML for the value of a key, or for an item of a list, beginning on the line of `head`."""
    kind = type(item)
    if item and kind in (dict, list):
        yield head
        yield from block(item, indent + "  ", quoted)
    elif kind is str and "\n" in item and not quoted and _LITERAL.fullmatch(item):
        body = item.rstrip("\n")
        ends = len(item) - len(body)
        yield f"{head} |{'-' if not ends else '' if ends == 1 else '+'}"
        yield from (f"{indent}  {line}" if line else "" for line in body.split("\n"))
        yield from [""] * (ends - 1)
    elif kind is str:
        yield f"{head} {string(item, quoted)}"
    else:
        yield f"{head} {item.text if kind is Number else json.dumps(item)}"


# Multi-line text that can be written as a literal block: it does not begin with a space, and no line ends in one.
_LITERAL = re.compile(rf"[^\s{UNSEEN}](?:[^{UNSEEN}]|\t|(?<![ \t])\n)*+(?<![ \t])")
UNQUOTED = re.compile(rf"[\w(/$+.](?:[^{UNSEEN}:#]|:(?! |\Z)|(?<! )#)*(?<! )")
_ESCAPED = re.compile(rf'["\\{UNSEEN}]')
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def string(text: str, quoted: bool) -> str:
    """A YAML string, quoted if a YAML 1.1 or 1.2 reader could resolve it to another type."""
    if quoted or not UNQUOTED.fullmatch(text) or core_json(text)[0] != '"' or implicit_tag(text) is not None:
        return double_quoted(text)
    return text


def implicit_tag(text: str) -> str | None:
    """The tag that a YAML 1.1 reader resolves an unquoted string to; None if it remains a string."""
    if text in ("y", "Y", "n", "N"):
        return "tag:yaml.org,2002:bool"
    return next(
        (tag for tag, pattern in Resolver.yaml_implicit_resolvers.get(text[0], ()) if pattern.match(text)), None
    )


#: Keys repeat from file to file.
_name = lru_cache(maxsize=1024)(string)


def double_quoted(text: str) -> str:
    """A YAML string in double quotes."""
    return f'"{_ESCAPED.sub(_escape, text)}"'


def _escape(match: re.Match[str]) -> str:
    return _ESCAPES.get(match[0]) or f"\\u{ord(match[0]):04x}"
