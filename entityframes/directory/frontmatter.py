"""Front matter: converts YAML to JSON, closely following the core schema of YAML 1.2.

Only ``true`` and ``false`` are booleans. A scalar is a number only if JSON would write that number with the same
characters. Numbers that would not round-trip (``3.10``, ``1.0``, ``1e5``, ``0x1F``) and scalars that are neither null,
boolean nor number (dates and times, ``on``, ``007``, ``+49``) are strings, and so is every key. Constructs that can
expand to something far larger, or that are more than data, are rejected: aliases and anchors, tags, merge keys, deep
nesting.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from json.encoder import encode_basestring
from typing import Any, NoReturn

import yaml
from yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from entityframes.metadata.canonical_json import number_text

try:
    from yaml.cyaml import CParser as _Parser
except ImportError:  # PyYAML without libyaml: same results, but slow
    from yaml import SafeLoader as _Parser

__all__ = [
    "DEPTH",
    "UNSEEN",
    "MarkdownError",
    "NoMappingError",
    "Node",
    "core_json",
    "nodes",
    "plain_json",
    "yaml_json",
]

#: Maximum nesting depth of mappings and lists.
DEPTH = 50
#: Characters that YAML can represent only as escapes, as the body of a regular expression's character class.
UNSEEN = r"\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff"

_WORDS = {"": "null", "~": "null"} | {
    spelling: word for word in ("null", "true", "false") for spelling in (word, word.capitalize(), word.upper())
}
_NUMBER = re.compile(r"(-?)(0|[1-9][0-9]*)?(\.[0-9]*)?([eE][-+]?[0-9]+)?")
_BASED_NUMBER = re.compile(r"0(?:x[0-9a-fA-F]+|o[0-7]+)")
_NO_NUMBER = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_DIGITS = 4300  # Python's JSON parser rejects integers with more digits

_CORE_TAGS = {f"tag:yaml.org,2002:{name}": name for name in ("str", "int", "float", "bool", "null")}
_MAPPING_TAGS = (None, "tag:yaml.org,2002:map")
_SEQUENCE_TAGS = (None, "tag:yaml.org,2002:seq")

# A field that can be read without a parser: a plain string, a quoted string, a flow list of words, a block list of
# plain strings. Possessive quantifiers, so that a mismatch fails without backtracking.
_TEXT = rf"(?:[^\W_]|[(/])(?:[^{UNSEEN}:#]|:(?=[^\s:#])|(?<=[^\s#])#)*+"
_WORD = r"[^\W_](?:[\w./+-]| (?=[\w./+-]))*+"
_SIMPLE_FIELD = re.compile(
    rf"([A-Za-z][\w-]{{0,99}}):(?: ++(?:({_TEXT})|(\"[^\"\\{UNSEEN}]*+\"|'[^'{UNSEEN}]*+')"
    rf"|\[({_WORD}(?:, ?{_WORD})*+)\])|((?:\r?\n  - {_TEXT})++|(?:\r?\n- {_TEXT})++))? *+\r?\n"
)


class MarkdownError(ValueError):
    """A file that cannot be read, or metadata that cannot be written.

    Attributes:
        line: the line of the file, counted from 1, or None.
    """

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message if line is None else f"line {line}: {message}")
        self.line = line


class NoMappingError(MarkdownError):
    """YAML that is a string or a list: text between two thematic breaks rather than front matter."""


def yaml_json(front: str) -> str:
    """Front matter as a JSON object.

    Args:
        front: the front matter without its fences.

    Raises:
        MarkdownError: it is not YAML, not a mapping, or uses a construct that is rejected. Lines are counted from the
            opening fence.
    """
    simple = _simple_json(front)
    if simple is not None:
        return simple
    try:
        return _parsed_json(front)
    except NoMappingError:
        raise
    except MarkdownError as error:
        _refuse_template(front, error)
        raise


# A placeholder of a template (Mustache, Jinja, Liquid, EJS) outside of quotes and comments.
_PLACEHOLDER = re.compile(r"^[^#\"'\n]{0,300}?(\{\{.{0,100}?\}\}|\{%.{0,100}?%\}|<%.{0,100}?%>)", re.MULTILINE)


def _refuse_template(front: str, error: MarkdownError) -> None:
    """If unreadable front matter contains a template placeholder, raise an error that names it."""
    found = _PLACEHOLDER.search(front)
    if found is not None:
        line = front.count("\n", 0, found.start(1)) + 2
        raise MarkdownError(
            f"{found[1]} is a template placeholder, not YAML: put it in quotes, or ignore templates "
            "(with a line such as templates/ in .efignore)",
            line,
        ) from error


def _simple_json(front: str) -> str | None:
    """JSON of front matter in which every field is simple (in a quarter of the parser's time), or None."""
    fields: dict[str, str] = {}
    position = 0
    while position < len(front):
        field = _SIMPLE_FIELD.match(front, position)
        if field is None:
            return None
        key, text, quoted, words, lines = field.groups()
        if key in fields:
            return None
        if quoted:
            fields[key] = encode_basestring(quoted[1:-1])
        elif words:
            fields[key] = f"[{','.join([plain_json(word.strip()) for word in words.split(',')])}]"
        elif lines:
            items = [line.strip(" ")[2:].rstrip(" ") for line in lines.splitlines()[1:]]
            fields[key] = f"[{','.join([plain_json(item) for item in items])}]"
        else:
            fields[key] = plain_json(text.rstrip(" ")) if text else "null"
        position = field.end()
    return f"{{{','.join([f'{encode_basestring(key)}:{value}' for key, value in fields.items()])}}}"


def _parsed_json(front: str) -> str:
    """JSON of front matter, built from the parser's events: nothing is built that could be larger than the input."""
    try:
        parser = _Parser(front)
        try:
            return _events_json(parser)
        finally:
            parser.dispose()
    except yaml.MarkedYAMLError as error:
        # An unclosed construct is reported at the end of the stream; the context mark is where it starts.
        closed = error.problem_mark and "end of stream" not in error.problem
        mark = error.problem_mark if closed else error.context_mark or error.problem_mark
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise MarkdownError(reason, mark.line + 2 if mark else None) from None
    except yaml.reader.ReaderError as error:
        # Both parsers give the position of the invalid character, in characters or bytes.
        line = front.encode()[: error.position].count(b"\n") + 2
        raise MarkdownError(f"a character that YAML does not allow: {error.reason}", line) from None


def _events_json(parser: Any) -> str:
    parts: list[str] = []
    write = parts.append
    outer: list[set[str] | None] = []
    names: set[str] | None = None  # keys seen so far in the open mapping; None in a list
    at_key = False
    separator = ""
    while True:
        event = parser.get_event()
        kind = type(event)
        if kind is ScalarEvent and outer:
            if names is not None and at_key:
                write(f"{separator}{encode_basestring(_key(event, names))}:")
                separator, at_key = "", False
                continue
            write(separator + _scalar_json(event))
        elif kind is MappingStartEvent or kind is SequenceStartEvent:
            _check_collection(event, kind is MappingStartEvent, at_key, len(outer))
            write(separator + ("{" if kind is MappingStartEvent else "["))
            outer.append(names)
            names = set() if kind is MappingStartEvent else None
            separator, at_key = "", names is not None
            continue
        elif kind is MappingEndEvent or kind is SequenceEndEvent:
            write("}" if kind is MappingEndEvent else "]")
            names = outer.pop()
        elif kind is AliasEvent:
            _refuse(event, f"the alias *{event.anchor}; quote a string that begins with *")
        elif kind is ScalarEvent:
            _refuse(event, "a string instead of a mapping of keys to values", NoMappingError)
        elif kind is DocumentEndEvent:
            event = parser.get_event()
            if type(event) is not StreamEndEvent:
                _refuse(event, "a second document")
            return "".join(parts)
        elif kind is StreamEndEvent:
            return "{}"
        separator = "," if outer else ""
        at_key = names is not None


@dataclass
class Node:
    """A value in front matter, and its position."""

    #: scalar, mapping or list.
    kind: str
    #: Start and end position; a block collection ends with its last element.
    start: int
    end: int
    #: Whether a mapping or a list is in flow style.
    flow: bool = False
    #: For a scalar: its style (``'``, ``"``, ``|``, ``>``, or empty) and its JSON.
    style: str = ""
    json: str = ""
    #: For a mapping: start and end position of each key, and the key.
    keys: list[tuple[int, int, str]] = field(default_factory=list)
    #: The values of a mapping, or the items of a list.
    nodes: list[Node] = field(default_factory=list)


def nodes(front: str) -> Node | None:
    """The mapping in front matter, with the positions of all its values; None if the front matter is empty.

    Args:
        front: front matter that `yaml_json` accepts.
    """
    parser = _Parser(front)
    try:
        while True:
            event = parser.get_event()
            if type(event) is StreamEndEvent:
                return None
            if type(event) is MappingStartEvent:
                return _node(parser, event, front)
    finally:
        parser.dispose()


def _node(parser: Any, event: Any, front: str) -> Node:
    start, end = event.start_mark.index, event.end_mark.index
    if type(event) is ScalarEvent:
        style = event.style or ""
        if style in ("|", ">"):
            text = front[start:end]
            # Trailing blank lines are part of it only with the + indicator.
            kept = "+" in text.split("\n", 1)[0].split("#", 1)[0]
            end = start + len(text.removesuffix("\n").removesuffix("\r") if kept else text.rstrip(" \t\r\n"))
        return Node("scalar", start, end, style=style, json=_scalar_json(event))
    mapping = type(event) is MappingStartEvent
    node = Node("mapping" if mapping else "list", start, end, flow=bool(event.flow_style))
    while type(event := parser.get_event()) not in (MappingEndEvent, SequenceEndEvent):
        if mapping:
            node.keys.append((event.start_mark.index, event.end_mark.index, event.value))
            event = parser.get_event()
        node.nodes.append(_node(parser, event, front))
    last = node.nodes[-1].end if node.nodes else end
    node.end = event.end_mark.index if node.flow else max(last, node.keys[-1][1]) if mapping else last
    return node


def _refuse(event: Any, what: str, error: type[MarkdownError] = MarkdownError) -> NoReturn:
    raise error(f"front matter may not contain {what}", event.start_mark.line + 2)


def _check_collection(event: Any, mapping: bool, at_key: bool, depth: int) -> None:
    """Reject a mapping or a list that JSON cannot represent, or that is nested too deeply."""
    if not mapping and not depth:
        _refuse(event, "a list instead of a mapping of keys to values", NoMappingError)
    if at_key:
        _refuse(event, "a key that is a list or a mapping")
    if depth >= DEPTH:
        _refuse(event, f"nesting deeper than {DEPTH}")
    if event.anchor is not None:
        _refuse(event, f"the anchor &{event.anchor}")
    if event.tag not in (_MAPPING_TAGS if mapping else _SEQUENCE_TAGS):
        _refuse(event, f"the tag {event.tag}")


def _key(event: Any, names: set[str]) -> str:
    """A key, always as a string."""
    key: str = event.value
    _kind_of(event)
    if key == "<<" and event.implicit[0]:
        _refuse(event, "the merge key <<")
    if key in names:
        _refuse(event, f"the duplicate key {json.dumps(key, ensure_ascii=False)}")
    names.add(key)
    return key


def _scalar_json(event: Any) -> str:
    kind = _kind_of(event)
    if kind == "str":
        return encode_basestring(event.value)
    if _NO_NUMBER.fullmatch(event.value):
        _refuse(event, f"{event.value}, which is not a valid JSON number")
    if kind == "plain":
        return plain_json(event.value)
    text = core_json(event.value)
    found = "str" if text[0] == '"' else "null" if text[0] == "n" else "bool" if text[0] in "tf" else "number"
    if kind != found and not (found == "number" and (kind == "float" or text.lstrip("-").isdigit())):
        _refuse(event, f"the tag !!{kind} on a value of another type")
    return text


def _kind_of(event: Any) -> str:
    """The type of a scalar: from its tag or its quotes, or ``plain`` if it is to be inferred from its characters."""
    if event.anchor is not None:
        _refuse(event, f"the anchor &{event.anchor}; quote a string that begins with &")
    if event.tag is None:
        return "plain" if event.implicit[0] else "str"
    if event.tag not in _CORE_TAGS:
        _refuse(event, f"the tag {event.tag}; quote a string that begins with !")
    return _CORE_TAGS[event.tag]


def plain_json(text: str) -> str:
    """JSON of an unquoted scalar: null, a boolean, a number that JSON writes the same way, or else a string."""
    found = core_json(text)
    return found if found == text or found[0] not in "-0123456789" else encode_basestring(text)


def core_json(text: str) -> str:
    """JSON of a scalar by YAML's core schema, with numbers in JSON notation."""
    word = _WORDS.get(text)
    if word is not None:
        return word
    if text[0] in "-.0123456789":
        number = _NUMBER.fullmatch(text)
        if number is not None:
            sign, whole, fraction, exponent = number.groups("")
            if fraction or exponent:
                if (whole or len(fraction) > 1) and math.isfinite(float(text)):
                    return number_text(f"{sign}{whole or '0'}{fraction}{'0' if fraction == '.' else ''}{exponent}")
            elif whole and len(whole) <= _DIGITS:
                return text if text != "-0" else "0"
        elif _BASED_NUMBER.fullmatch(text) and len(text) < _DIGITS // 2:
            return str(int(text, 0))
    return encode_basestring(text)
