"""Markdown files: front matter in YAML as metadata, the body as content, bytes kept as they are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

from yaml.resolver import Resolver

from entityframes.directory.frontmatter import DEPTH, UNSEEN, MarkdownError, NoMappingError, plain_json, yaml_json

__all__ = ["Document", "MarkdownError", "join", "parse", "render"]

FRONT_MATTER_BYTES = 1 << 20

BOM = b"\xef\xbb\xbf"
_FOREIGN_BOM = re.compile(rb"\xff\xfe\0\0|\0\0\xfe\xff|\xff\xfe|\xfe\xff")
_OPENING = re.compile(rb"---[ \t]*(?:\r?\n|\Z)")
_CLOSING = re.compile(rb"^(?:---|\.\.\.)[ \t]*(?:\r?\n|\r?\Z)", re.MULTILINE)
# What a second line looks like where a first line "---" is not a thematic break.
_FIELD = re.compile(rb"""(?:(?:[\w.-]|[\x80-\xff])+|"[^"\n]*"|'[^'\n]*')[ \t]*:(?:[ \t\r\n]|\Z)""")


# What the line below the first rule is, comments aside, if the rule begins a front matter that is broken: a key, or
# what only YAML begins with. Below a rule that divides a text stands an empty line, or a sentence.
_FIRST_LINE = re.compile(
    rb"""(?:[ \t]*+\#[^\n]*+\n)*+[ \t]*+
    (?: [?{&!%] | <<[ \t]*: | (?:[\w"'] | [\x80-\xff])(?:[\w .,/()&+'"-] | [\x80-\xff]){0,200}+:(?:\s|\Z) )""",
    re.VERBOSE,
)


class Document(NamedTuple):
    """The parts of a markdown file."""

    header: bytes  #: everything before the body: byte order mark, front matter with its fences; b"" if none
    content: str  #: the body, as it stands: line ends are kept
    metadata: str  #: the front matter as a JSON object


def parse(data: bytes) -> Document:
    """Take a file apart. Where the first rule (``---``) begins no mapping of keys to values, all of it is the body.

    Raises:
        MarkdownError: the file is not UTF-8, or its front matter is not closed, not YAML, not a mapping, or refused.
    """
    foreign = _FOREIGN_BOM.match(data)
    if foreign:
        raise MarkdownError(f"the file is UTF-{16 if len(foreign[0]) == 2 else 32}, not UTF-8", 1)
    start = len(BOM) if data.startswith(BOM) else 0
    opening = _OPENING.match(data, start)
    if opening is None:
        return Document(data[:start], _text(data, start, len(data)), "{}")
    closing = _CLOSING.search(data, opening.end())
    if closing is None:
        if _FIELD.match(data, opening.end()):
            raise MarkdownError(
                "the front matter that begins in line 1 has no closing ---; if that is a rule, leave line 1 empty",
                1,
            )
        return Document(data[:start], _text(data, start, len(data)), "{}")
    if closing.start() - opening.end() > FRONT_MATTER_BYTES:
        raise MarkdownError("the front matter is larger than 1 MiB", 1)
    front = _text(data, opening.end(), closing.start())
    content = _text(data, closing.end(), len(data))
    try:
        return Document(data[: closing.end()], content, yaml_json(front))
    except MarkdownError as error:
        # A rule, some text, and another rule.
        if isinstance(error, NoMappingError) or not _FIRST_LINE.match(data, opening.end()):
            return Document(data[:start], _text(data, start, len(data)), "{}")
        raise


def join(header: bytes, content: str) -> bytes:
    """A file with the header of another and a body, which reads back as it is.

    A line end is added to a header that has none, and an empty front matter where the body would be taken for one.
    """
    body = _encoded(content)
    if header not in (b"", BOM):
        if body and not header.endswith(b"\n"):
            header += _line_end(header)
    elif content.startswith(("---", "\ufeff")):
        try:
            misread = parse(header + body).content != content
        except MarkdownError:
            misread = True
        if misread:
            header += b"---\n---\n"
    return header + body


def render(metadata: str, content: str, header: bytes = b"") -> bytes:
    """A file with its front matter anew.

    Args:
        metadata: a JSON object; ``{}`` makes no front matter unless the content needs one to be told from it.
        content: the body.
        header: what the file had before the body; its byte order mark, line ends and order of keys are kept.

    Raises:
        MarkdownError: YAML, or this module's limits, cannot hold the metadata.
    """
    mark = BOM if header.startswith(BOM) else b""
    try:
        fields = _values(metadata)
        if not fields:
            return join(mark, content)
        fields = _in_order(fields, _old_values(header))
        for quoted in (False, True):
            lines = ["---", *_block(fields, "", quoted), "---", ""]
            front = mark + _encoded("\n".join(lines)).replace(b"\n", _line_end(header))
            if _values(parse(front).metadata) == fields:
                return front + _encoded(content)
    except (ValueError, RecursionError) as error:
        raise MarkdownError(f"the metadata cannot be written as front matter: {error}") from error
    raise MarkdownError("the metadata cannot be written as front matter")


def _text(data: bytes, start: int, end: int) -> str:
    try:
        return data[start:end].decode()
    except UnicodeDecodeError as error:
        offset = start + error.start
        line = data.count(b"\n", 0, offset) + 1
        raise MarkdownError(f"byte {data[offset]:#04x} at offset {offset} is not UTF-8", line) from None


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise MarkdownError("a lone surrogate is no character") from None


def _line_end(header: bytes) -> bytes:
    return b"\r\n" if b"\r\n" in header or header.endswith(b"\r") else b"\n"


class _Number(NamedTuple):
    """A number as its JSON text."""

    text: str


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


_decode = json.JSONDecoder(parse_int=_Number, parse_float=_Number, parse_constant=_refuse_constant).decode


def _values(metadata: str) -> dict[str, Any]:
    values = _decode(metadata)
    if type(values) is not dict:
        raise ValueError("it is not a JSON object")
    return values


def _old_values(header: bytes) -> dict[str, Any]:
    try:
        return _values(parse(header).metadata)
    except ValueError:
        return {}


def _in_order(new: Any, old: Any) -> Any:
    """`new` with the keys of its mappings in the order that they have in `old`, the others behind them."""
    if type(new) is dict and type(old) is dict:
        keys = [*(key for key in old if key in new), *(key for key in new if key not in old)]
        return {key: _in_order(new[key], old.get(key)) for key in keys}
    if type(new) is list and type(old) is list:
        return [_in_order(item, old[index] if index < len(old) else None) for index, item in enumerate(new)]
    return new


def _block(value: Any, indent: str, quoted: bool) -> Iterator[str]:
    """Lines of YAML for a mapping or a list that is not empty."""
    if len(indent) >= 2 * DEPTH:
        raise ValueError(f"nesting deeper than {DEPTH}")
    if type(value) is dict:
        for key, item in value.items():
            name = _name(key, quoted)
            if len(name) > 1000:  # YAML looks for the colon within 1,024 characters
                yield f"{indent}? {_double_quoted(key)}"
                name = ""
            yield from _entry(f"{indent}{name}:", item, indent, quoted)
    else:
        for item in value:
            if item and type(item) in (dict, list):
                first, *others = _block(item, indent + "  ", quoted)
                yield f"{indent}- {first[len(indent) + 2 :]}"
                yield from others
            else:
                yield from _entry(f"{indent}-", item, indent, quoted)


def _entry(head: str, item: Any, indent: str, quoted: bool) -> Iterator[str]:
    """A key's or a list's item, beginning on the line of `head`."""
    kind = type(item)
    if item and kind in (dict, list):
        yield head
        yield from _block(item, indent + "  ", quoted)
    elif kind is str and "\n" in item and not quoted and _LITERAL.fullmatch(item):
        body = item.rstrip("\n")
        ends = len(item) - len(body)
        yield f"{head} |{'-' if not ends else '' if ends == 1 else '+'}"
        yield from (f"{indent}  {line}" if line else "" for line in body.split("\n"))
        yield from [""] * (ends - 1)
    elif kind is str:
        yield f"{head} {_string(item, quoted)}"
    else:
        yield f"{head} {item.text if kind is _Number else json.dumps(item)}"


# Text in several lines that reads well as a literal block: it does not begin with a space, and no line ends in one.
_LITERAL = re.compile(rf"[^\s{UNSEEN}](?:[^{UNSEEN}]|\t|(?<![ \t])\n)*+(?<![ \t])")
_UNQUOTED = re.compile(rf"[\w(/$+.](?:[^{UNSEEN}:#]|:(?! |\Z)|(?<! )#)*(?<! )")
_ESCAPED = re.compile(rf'["\\{UNSEEN}]')
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _string(text: str, quoted: bool) -> str:
    """A string of YAML, in quotes where a reader of YAML 1.1 or 1.2 might take it for something else."""
    if quoted or not _UNQUOTED.fullmatch(text) or text in ("y", "Y", "n", "N") or plain_json(text)[0] != '"':
        return _double_quoted(text)
    if any(pattern.match(text) for _, pattern in Resolver.yaml_implicit_resolvers.get(text[0], ())):
        return _double_quoted(text)
    return text


#: Keys come again and again.
_name = lru_cache(maxsize=1024)(_string)


def _double_quoted(text: str) -> str:
    return f'"{_ESCAPED.sub(_escape, text)}"'


def _escape(match: re.Match[str]) -> str:
    return _ESCAPES.get(match[0]) or f"\\u{ord(match[0]):04x}"
