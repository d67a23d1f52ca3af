"""Markdown files: YAML front matter is the metadata, the body is the content; bytes are preserved."""

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
# A second line that shows that "---" on the first line is not a thematic break.
_FIELD = re.compile(rb"""(?:(?:[\w.-]|[\x80-\xff])+|"[^"\n]*"|'[^'\n]*')[ \t]*:(?:[ \t\r\n]|\Z)""")


# The first line below "---", after any comments, if it begins front matter that is broken: a key, or a character that
# only YAML begins with. Below a thematic break there is a blank line or a sentence.
_FIRST_LINE = re.compile(
    rb"""(?:[ \t]*+\#[^\n]*+\n)*+[ \t]*+
    (?: [?{&!%] | <<[ \t]*: | (?:[\w"'] | [\x80-\xff])(?:[\w .,/()&+'"-] | [\x80-\xff]){0,200}+:(?:\s|\Z) )""",
    re.VERBOSE,
)


class Document(NamedTuple):
    """The parts of a markdown file."""

    header: bytes  #: everything before the body: byte order mark, front matter with its fences; b"" if none
    content: str  #: the body; line endings are preserved
    metadata: str  #: the front matter as a JSON object


def parse(data: bytes) -> Document:
    """Split a file into its parts. If the leading ``---`` does not begin a mapping, the whole file is the body.

    Raises:
        MarkdownError: the file is not UTF-8, or its front matter is not closed, not YAML, not a mapping, or uses a
            construct that is rejected.
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
                "the front matter that begins on line 1 has no closing ---; if line 1 is a thematic break, put a blank "
                "line before it",
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
        # A thematic break, some text, and another thematic break.
        if isinstance(error, NoMappingError) or not _FIRST_LINE.match(data, opening.end()):
            return Document(data[:start], _text(data, start, len(data)), "{}")
        raise


def join(header: bytes, content: str) -> bytes:
    """A file with an existing header and a body, which reads back as these.

    A line ending is added to a header without one, and an empty front matter if the body itself would be read as one.
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
        metadata: a JSON object; ``{}`` produces no front matter unless the content would be read as front matter
            without it, or the header contains comments.
        content: the body.
        header: the header that the file had. Only the lines of changed fields are rewritten, and new keys are appended;
            comments, blank lines, quotes, order and line endings are preserved.

    Raises:
        MarkdownError: the metadata cannot be represented in YAML, or exceeds the limits of this module.
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
    """The header with its fields changed to `fields`; None if it has no front matter, or cannot be edited in place."""
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
        raise MarkdownError("it contains a lone surrogate, which is not a character") from None


def _line_end(header: bytes) -> bytes:
    return b"\r\n" if b"\r\n" in header or header.endswith(b"\r") else b"\n"


def _old_values(header: bytes) -> dict[str, Any]:
    try:
        return values(parse(header).metadata)
    except ValueError:
        return {}


def _in_order(new: Any, old: Any) -> Any:
    """`new` with the keys of its mappings in the order of `old`, followed by the keys that are new."""
    if type(new) is dict and type(old) is dict:
        keys = [*(key for key in old if key in new), *(key for key in new if key not in old)]
        return {key: _in_order(new[key], old.get(key)) for key in keys}
    if type(new) is list and type(old) is list:
        return [_in_order(item, old[index] if index < len(old) else None) for index, item in enumerate(new)]
    return new
