"""Markdown files: front matter in YAML as metadata, the body as content, bytes kept as they are."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from entityframes.directory import edit
from entityframes.directory.frontmatter import (
    MarkdownError,
    NoMappingError,
    yaml_json,
)
from entityframes.directory.yaml_lines import block, values

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
    """A file with other metadata.

    Args:
        metadata: a JSON object; ``{}`` makes no front matter unless the content needs one to be told from it, or the
            header holds comments.
        content: the body.
        header: what the file had before the body. Only the lines of what changed are written anew, new keys follow the
            others; comments, blank lines, quotes, order and line ends stay.

    Raises:
        MarkdownError: YAML, or this module's limits, cannot hold the metadata.
    """
    mark = BOM if header.startswith(BOM) else b""
    try:
        fields = values(metadata)
        changed = _changed(header, fields)
        if changed is not None:
            return join(changed, content)
        if not fields:
            return join(mark, content)
        fields = _in_order(fields, _old_values(header))
        for quoted in (False, True):
            lines = ["---", *block(fields, "", quoted), "---", ""]
            front = mark + _encoded("\n".join(lines)).replace(b"\n", _line_end(header))
            if values(parse(front).metadata) == fields:
                return front + _encoded(content)
    except (ValueError, RecursionError) as error:
        raise MarkdownError(f"the metadata cannot be written as front matter: {error}") from error
    raise MarkdownError("the metadata cannot be written as front matter")


def _changed(header: bytes, fields: dict[str, Any]) -> bytes | None:
    """A header whose front matter holds other fields, changed where they differ; None if there is none, or no way."""
    try:
        if parse(header).header in (b"", BOM):
            return None
    except MarkdownError:
        return None
    opening = _OPENING.match(header, len(BOM) if header.startswith(BOM) else 0)
    closing = opening and _CLOSING.search(header, opening.end())
    if opening is None or closing is None:
        return None
    front = _text(header, opening.end(), closing.start())
    line_end = _line_end(header).decode()
    for whole_fields in (False, True):
        changed = edit.edited(front, fields, line_end, whole_fields=whole_fields)
        if changed is None:
            continue
        data = header[: opening.end()] + _encoded(changed) + header[closing.start() :]
        try:
            if (fields or changed.strip()) and values(parse(data).metadata) == fields:
                return data
        except MarkdownError:
            continue
    return None


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


def _old_values(header: bytes) -> dict[str, Any]:
    try:
        return values(parse(header).metadata)
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
