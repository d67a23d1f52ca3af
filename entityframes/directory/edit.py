"""Edit front matter in place: lines whose fields do not change keep their bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Any

from entityframes.directory.frontmatter import UNSEEN, Node, core_json, nodes, plain_json
from entityframes.directory.yaml_lines import (
    UNQUOTED,
    Number,
    block,
    double_quoted,
    entry,
    implicit_tag,
    string,
    value_of,
)

_COLON = re.compile(r"[ \t]*:")
_BRACKETS = re.compile(r"[\[\]{},]")
_SINGLE_QUOTED = re.compile(rf"[^{UNSEEN}]*")


class _NotInPlaceError(Exception):
    """A value cannot be edited in place: the field or collection that contains it is rewritten."""


def edited(front: str, fields: dict[str, Any], line_end: str, *, whole_fields: bool) -> str | None:
    """The front matter with its fields changed to `fields`, or None if it cannot be edited in place.

    The caller has to check that the result reads back as `fields`.

    Args:
        front: the front matter without its fences.
        fields: the new fields, as returned by `yaml_lines.values`.
        line_end: the line ending of new lines.
        whole_fields: rewrite the whole field if any part of it differs, not only the parts that differ.
    """
    root = nodes(front) or Node("mapping", len(front), len(front))
    edit = _Edit(front, whole_fields)
    try:
        if root.flow:
            edit.value(root, fields)
        else:
            edit.mapping(root, fields, 0, root=True)
    except _NotInPlaceError:
        return None
    text = front
    for start, end, new in sorted(edit.changes, key=lambda change: change[:2], reverse=True):
        text = text[:start] + new.replace("\n", line_end) + text[end:]
    return text


class _Edit:
    """The changes of one front matter."""

    def __init__(self, text: str, whole_fields: bool) -> None:
        self.text = text
        self.whole_fields = whole_fields
        #: Replacements: start, end, new text. Those at the same position are in the order of the text.
        self.changes: list[tuple[int, int, str]] = []

    # Lines.

    def line_start(self, at: int) -> int:
        return self.text.rfind("\n", 0, at) + 1

    def line_end(self, at: int) -> int:
        """The position after the line and its line ending."""
        end = self.text.find("\n", at)
        return len(self.text) if end < 0 else end + 1

    def entry_end(self, at: int) -> int:
        """The position after the lines of a field that is removed.

        Blank lines below it are removed too if they would become part of the field above, such as a block scalar that
        keeps trailing line breaks.
        """
        end = self.line_end(at)
        if self.whole_fields:
            while end < len(self.text) and not self.text[end : self.line_end(end)].strip():
                end = self.line_end(end)
        return end

    def begins_line(self, at: int, *also: str) -> bool:
        return self.text[self.line_start(at) : at].strip() in ("", *also)

    # Blocks.

    def mapping(self, node: Node, wanted: dict[str, Any], column: int, *, root: bool = False) -> None:
        """Change a block mapping."""
        if not wanted and not root:
            raise _NotInPlaceError
        for (start, end, key), value in zip(node.keys, node.nodes, strict=True):
            if key not in wanted:
                if not self.begins_line(start, "?"):
                    raise _NotInPlaceError
                self.changes.append((self.line_start(start), self.entry_end(max(end, value.end)), ""))
            elif value_of(value) != wanted[key]:
                self.field(start, end, value, wanted[key], column)
        known = {key for _, _, key in node.keys}
        new = {key: value for key, value in wanted.items() if key not in known}
        if new:
            at = len(self.text) if root else self.line_end(node.end)
            self.changes.append((at, at, _lines(block(new, " " * column, False))))

    def field(self, start: int, end: int, node: Node, wanted: Any, column: int) -> None:
        """Change the value of a key."""
        before = len(self.changes)
        if not self.whole_fields:
            try:
                self.value(node, wanted)
                return
            except _NotInPlaceError:
                del self.changes[before:]
        colon = _COLON.match(self.text, end)
        if colon is None:
            raise _NotInPlaceError
        head, *lines = entry("", wanted, " " * column, False)
        comment = self.text[colon.end() : self.line_end(colon.end())].rstrip()
        stop = max(node.end, colon.end())
        trailing = self.text[stop : self.line_end(stop)].rstrip("\r\n")
        if comment.lstrip().startswith("#"):
            head, stop = head + comment, max(stop, colon.end() + len(comment))
        elif trailing and node.start != node.end and "\n" not in self.text[colon.end() : stop]:
            head, stop = head + trailing, stop + len(trailing)
        self.changes.append((colon.end(), stop, "\n".join([head, *lines])))

    def value(self, node: Node, wanted: Any) -> None:
        """Change a value in place."""
        if node.kind == "mapping" and type(wanted) is dict:
            if node.flow:
                self.flow_mapping(node, wanted)
            else:
                first = node.keys[0][0]
                self.mapping(node, wanted, first - self.line_start(first))
        elif node.kind == "list" and type(wanted) is list:
            if node.flow:
                self.flow_list(node, wanted)
            else:
                self.dashed(node, wanted)
        elif type(wanted) in (dict, list) and wanted:
            raise _NotInPlaceError
        elif (node.kind == "scalar" and node.style not in ("|", ">")) or node.flow:
            self.inline(node, wanted, in_brackets=False)
        else:
            raise _NotInPlaceError

    def inline(self, node: Node, wanted: Any, *, in_brackets: bool) -> None:
        """Replace a scalar or a flow collection by a value on one line."""
        text = self.inline_text(node, wanted, in_brackets)
        self.changes.append((node.start, node.end, f" {text}" if node.start == node.end else text))

    def inline_text(self, node: Node, wanted: Any, in_brackets: bool) -> str:
        """A value on one line, in the same style of quotes as the value that it replaces."""
        if type(wanted) is not str:
            return _flow(wanted)
        if node.style == "'" and _SINGLE_QUOTED.fullmatch(wanted):
            return "'" + wanted.replace("'", "''") + "'"
        if node.style == '"':
            return double_quoted(wanted)
        old = self.text[node.start : node.end]
        if (
            node.kind == "scalar"
            and not node.style
            and _same_plain_type(old, wanted)
            and not _needs_quotes(wanted, in_brackets)
        ):
            return wanted
        return _flow(wanted) if in_brackets else string(wanted, False)

    def dashed(self, node: Node, wanted: list[Any]) -> None:
        """Change a block list."""
        if not wanted or not self.begins_line(node.start):
            raise _NotInPlaceError
        dashes = self.dashes(node)
        spans = [
            (self.line_start(dash), self.line_end(max(item.end, dash + 1)))
            for dash, item in zip(dashes, node.nodes, strict=True)
        ]
        indent = " " * (node.start - self.line_start(node.start))
        for tag, i, j, k, m in _differences([value_of(item) for item in node.nodes], wanted):
            if tag == "replace" and j - i == m - k:
                for item, span, new in zip(node.nodes[i:j], spans[i:j], wanted[k:m], strict=True):
                    self.item(item, span, new, indent)
                continue
            at = spans[i - 1][1] if i else spans[0][0]
            if m > k:
                self.changes.append((at, at, _lines(block(wanted[k:m], indent, False))))
            self.changes += [(*span, "") for span in spans[i:j]]

    def dashes(self, node: Node) -> list[int]:
        """The position of the dash of each item."""
        column = node.start - self.line_start(node.start)
        found, at = [], node.start
        dash = re.compile(rf"^ {{{column}}}-(?=\s|\Z)", re.MULTILINE)
        for item in node.nodes:
            match = dash.search(self.text, self.line_start(at))
            if match is None:
                raise _NotInPlaceError
            found.append(match.end() - 1)
            at = self.line_end(max(item.end, match.end()))
        return found

    def item(self, node: Node, span: tuple[int, int], wanted: Any, indent: str) -> None:
        """Change an item of a block list."""
        before = len(self.changes)
        try:
            if node.start == node.end:
                raise _NotInPlaceError
            self.value(node, wanted)
        except _NotInPlaceError:
            del self.changes[before:]
            self.changes.append((*span, _lines(block([wanted], indent, False))))

    # Brackets.

    def flow_mapping(self, node: Node, wanted: dict[str, Any]) -> None:
        """Change a flow mapping."""
        known = [key for _, _, key in node.keys]
        empty = any(value.start == value.end for value in node.nodes)
        if not known or empty or not wanted or any(key not in wanted for key in known):
            parts = [
                f"{_flow(key)}: {self.slice(node, known.index(key), value) if key in known else _flow(value)}"
                for key, value in wanted.items()
            ]
            self.changes.append((node.start, node.end, self.bracketed(node, parts)))
            return
        for key, value in zip(known, node.nodes, strict=True):
            self.flow_value(value, wanted[key])
        new = [f", {_flow(key)}: {_flow(value)}" for key, value in wanted.items() if key not in known]
        if new:
            self.changes.append((node.nodes[-1].end, node.nodes[-1].end, "".join(new)))

    def flow_list(self, node: Node, wanted: list[Any]) -> None:
        """Change a flow list."""
        old = [value_of(item) for item in node.nodes]
        if len(old) == len(wanted) and all(item.start < item.end for item in node.nodes):
            for item, new in zip(node.nodes, wanted, strict=True):
                self.flow_value(item, new)
            return
        if old and wanted[: len(old)] == old:
            end = node.nodes[-1].end
            self.changes.append((end, end, "".join(f", {_flow(item)}" for item in wanted[len(old) :])))
            return
        parts: list[str] = []
        for _, i, j, k, m in SequenceMatcher(None, _frozen(old), _frozen(wanted), autojunk=False).get_opcodes():
            same = old[i:j] == wanted[k:m]
            parts += [self.text[item.start : item.end] for item in node.nodes[i:j]] if same else map(_flow, wanted[k:m])
        self.changes.append((node.start, node.end, self.bracketed(node, parts)))

    def flow_value(self, node: Node, wanted: Any) -> None:
        if value_of(node) == wanted:
            return
        if node.kind == "mapping" and type(wanted) is dict:
            self.flow_mapping(node, wanted)
        elif node.kind == "list" and type(wanted) is list:
            self.flow_list(node, wanted)
        else:
            self.inline(node, wanted, in_brackets=True)

    def slice(self, node: Node, number: int, wanted: Any) -> str:
        """The text of a value in a flow mapping: the existing text if the value is equal."""
        value = node.nodes[number]
        same = value_of(value) == wanted and value.start < value.end
        return self.text[value.start : value.end] if same else _flow(wanted)

    def bracketed(self, node: Node, parts: list[str]) -> str:
        """The parts between the brackets of a node, with the same padding inside them."""
        text = self.text[node.start : node.end]
        space = " " if parts and text[1:2] == " " and text[-2:-1] == " " and node.nodes else ""
        return f"{text[0]}{space}{', '.join(parts)}{space}{text[-1]}"


def _lines(lines: Iterator[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _differences(old: list[Any], new: list[Any]) -> list[tuple[str, int, int, int, int]]:
    matcher = SequenceMatcher(None, _frozen(old), _frozen(new), autojunk=False)
    return [code for code in matcher.get_opcodes() if code[0] != "equal"]


def _frozen(values: list[Any]) -> list[str]:
    """A hashable string for each value; equal values have equal strings."""
    return [repr(_sorted(value)) for value in values]


def _sorted(value: Any) -> Any:
    if type(value) is dict:
        return [(key, _sorted(value[key])) for key in sorted(value)]
    return [[_sorted(item)] for item in value] if type(value) is list else value


def _same_plain_type(old: str, new: str) -> bool:
    """Whether a string may replace an unquoted one without quotes: YAML readers resolve both to the same type."""
    if not old or not UNQUOTED.fullmatch(new) or plain_json(new)[0] != '"' or core_json(new)[0] != '"':
        return False
    return implicit_tag(old) == implicit_tag(new)


def _needs_quotes(text: str, in_brackets: bool) -> bool:
    return in_brackets and _BRACKETS.search(text) is not None


def _flow(value: Any) -> str:
    """A value on one line, a collection in flow style."""
    if type(value) is dict:
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if type(value) is list:
        return "[" + ", ".join(map(_flow, value)) + "]"
    if type(value) is str:
        return double_quoted(value) if _needs_quotes(value, True) else string(value, False)
    return value.text if type(value) is Number else json.dumps(value)
