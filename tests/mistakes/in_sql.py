"""Mistakes in files of SQL statements, located by their tokens; definitions of tables are excluded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from tests.mistakes.change import Change

_TOKEN = re.compile(
    r"(?P<comment>--[^\n]*)|(?P<text>'(?:[^']|'')*'|\"[^\"]*\")|(?P<dollar>\$\d+)|(?P<number>\b\d+(?:\.\d+)?\b)"
    r"|(?P<word>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign><>|<=|>=|!=|::|\|\||->>|->|[^\s\w])"
)
#: Words that end a condition, or a list of columns to sort by.
_ENDS = {
    "GROUP", "ORDER", "LIMIT", "RETURNING", "UNION", "EXCEPT", "WINDOW", "FOR", "HAVING", "WHERE", "ON", "JOIN", "LEFT", "CROSS",
    "INNER", "ANTI", "SEMI", "FULL", "ASOF", "SELECT", "FROM", "SET", "QUALIFY", "OFFSET", "ROWS", "RANGE", "WHEN", "THEN",
    "ELSE", "AS", "USING", "VALUES", "INSERT", "UPDATE", "DELETE",
}  # fmt: skip
_SIGNS = {"<>": "=", "<": "<=", "<=": "<", ">": ">=", ">=": ">", "=": "<>", "+": "-", "-": "+"}
_WORDS = {
    "created_at": "updated_at", "updated_at": "created_at",
    "min": "max", "max": "min", "AND": "OR", "OR": "AND", "bool_and": "bool_or", "bool_or": "bool_and",
    "content_hash": "metadata_hash", "metadata_hash": "content_hash", "DESC": "ASC",
}  # fmt: skip

#: Neighbors in a list of columns, which are swapped.
_PAIRS = [[["entity_type"], ["id"]], [["created"], ["updated"]], [["created_at"], ["updated_at"]]]


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int
    depth: int


def changes(source: str) -> list[Change]:
    """All single mistakes that can be made in a file."""
    found: list[Change] = []
    for match in re.finditer(r"^-- (?:name|part): (\w+)\n(.*?)(?=^-- (?:name|part): |\Z)", source, re.M | re.S):
        start = match.start(2)
        for tokens in _statements(match[2]):
            for kind, first, last, new in _in_statement(tokens):
                places = (len(source[: start + place].encode()) for place in (first, last))
                found.append(Change(kind, match[1], *places, new))
    return found


def _statements(body: str) -> Iterator[list[_Token]]:
    """The tokens of each statement of a body, without comments; a CASE counts as a pair of brackets."""
    tokens: list[_Token] = []
    depth = 0
    for match in _TOKEN.finditer(body):
        kind, text = match.lastgroup or "", match[0]
        if kind == "comment":
            continue
        if text == ";" and not depth:
            yield tokens
            tokens = []
            continue
        if text in {")", "]", "END"}:
            depth -= 1
        tokens.append(_Token(kind, text, match.start(), match.end(), depth))
        if text in {"(", "[", "CASE"}:
            depth += 1
    yield tokens


def _in_statement(tokens: list[_Token]) -> Iterator[tuple[str, int, int, str]]:
    words = [token.text for token in tokens]
    if words[:2] in (["CREATE", "TABLE"], ["ALTER", "TABLE"], ["DROP", "TABLE"]):
        return
    for index, token in enumerate(tokens):
        here = words[index:]
        yield from _single(tokens, index)
        if here[0] in {"WHERE", "ON", "HAVING", "QUALIFY"} and here[1:2] != ["CONFLICT"] and token.kind == "word":
            yield from _conditions(tokens, index + 1)
        elif here[:2] == ["ORDER", "BY"]:
            yield "order", token.start, _until(tokens, index + 2)[1], ""
        elif here[0] == "LIMIT":
            yield "limit", token.start, _until(tokens, index + 1)[1], ""
        elif here[0] == "FOR" and here[1:2] in (["UPDATE"], ["SHARE"], ["KEY"], ["NO"]):
            yield "lock", token.start, _until(tokens, index + 2)[1], ""
        elif here[:2] == ["SKIP", "LOCKED"]:
            yield "lock", token.start, tokens[index + 1].end, ""
        elif here[0] == "USING" and here[1:2] == ["("]:
            yield from _listed("join", tokens, index + 2)
        elif here[0] == "SET" and "=" in here[:4]:
            yield from _listed("assignment", tokens, index + 1)


def _single(tokens: list[_Token], index: int) -> Iterator[tuple[str, int, int, str]]:
    """Mistakes of one word or symbol."""
    token = tokens[index]
    here = [after.text for after in tokens[index : index + 4]]
    before = [earlier.text for earlier in tokens[max(index - 2, 0) : index]]
    if token.kind == "number" and before[-1:] != ["::"]:
        number = int(token.text) if token.text.isdigit() else None
        if number is not None:
            yield "constant", token.start, token.end, str(number + 1)
            if number:
                yield "constant", token.start, token.end, str(number - 1)
    elif token.kind == "sign" and token.text in _SIGNS:
        # Not the value of an assignment or of an argument, nor the sign of a number.
        assigned = token.text == "=" and _assigns(tokens, index)
        if not assigned and not (token.text in "+-" and before[-1:] in (["("], [","])):
            yield "comparison", token.start, token.end, _SIGNS[token.text]
    elif token.text == "," and [before[-1:], here[1:2]] in _PAIRS and tokens[index - 2].text != ".":
        yield "swapped", tokens[index - 1].start, tokens[index + 1].end, f"{here[1]}, {before[-1]}"
    elif token.kind != "word":
        return
    elif here[:3] == ["IS", "DISTINCT", "FROM"]:
        yield "comparison", token.start, tokens[index + 2].end, "<>"
        yield "comparison", token.start, tokens[index + 2].end, "="
    elif here == ["IS", "NOT", "DISTINCT", "FROM"]:
        yield "comparison", token.start, tokens[index + 3].end, "="
    elif here[:3] == ["IS", "NOT", "NULL"]:
        yield "comparison", token.start, tokens[index + 2].end, "IS NULL"
    elif here[:2] == ["IS", "NULL"]:
        yield "comparison", token.start, tokens[index + 1].end, "IS NOT NULL"
    elif token.text == "DISTINCT" and here[1:2] not in (["FROM"], ["ON"]):
        yield "distinct", token.start, tokens[index + 1].start, ""
    elif token.text == "LEFT" and "JOIN" in here[:2]:
        yield "join", token.start, tokens[index + 1].start, ""
    elif token.text == "NOT" and here[1:2] not in (["NULL"], ["MATERIALIZED"]) and before[-1:] != ["IF"]:
        yield "not", token.start, tokens[index + 1].start, ""
    elif token.text == "UNION" and here[1:2] == ["ALL"]:
        yield "distinct", token.start, tokens[index + 1].end, "UNION"
    elif token.text == "AND" and "BETWEEN" in [earlier.text for earlier in tokens[max(index - 6, 0) : index]]:
        return
    elif token.text in _WORDS and before[-1:] != ["AS"]:
        yield "exchanged", token.start, token.end, _WORDS[token.text]


def _assigns(tokens: list[_Token], index: int) -> bool:
    """Whether an equals sign is in the list of a SET."""
    depth = tokens[index].depth
    for token in reversed(tokens[:index]):
        if token.depth < depth:
            return False
        if token.depth == depth and token.kind == "word":
            if token.text == "SET":
                return True
            if token.text in {"WHERE", "ON", "FROM", "SELECT", "HAVING", "AND", "OR"}:
                return False
    return False


def _until(tokens: list[_Token], index: int) -> tuple[int, int]:
    """The end of what begins at a token: the next token, and the index after the last one."""
    depth = tokens[index].depth
    for place in range(index, len(tokens)):
        token = tokens[place]
        word = token.depth == depth and token.kind == "word" and token.text in _ENDS
        if token.depth < depth or (word and tokens[place - 1].text not in {"DISTINCT", "FOR", "NO", "KEY"}):
            return place, tokens[place - 1].end
    return len(tokens), tokens[-1].end


def _conditions(tokens: list[_Token], index: int) -> Iterator[tuple[str, int, int, str]]:
    """Remove each part of a condition."""
    kind = "join" if tokens[index - 1].text == "ON" else "where"
    depth = tokens[index].depth
    until, _ = _until(tokens, index)
    if until == index:
        return
    joints = [
        place
        for place in range(index, until)
        if tokens[place].depth == depth and tokens[place].text in {"AND", "OR"}
        and "BETWEEN" not in [token.text for token in tokens[max(place - 6, index) : place] if token.depth == depth]
    ]  # fmt: skip
    kinds = {tokens[place].text for place in joints}
    if len(kinds) > 1:
        # Only the top-level parts, which OR combines.
        joints = [place for place in joints if tokens[place].text == "OR"]
        kinds = {"OR"}
    neutral = "false" if kinds == {"OR"} else "true"
    starts = [index, *(place + 1 for place in joints)]
    ends = [*(place - 1 for place in joints), until - 1]
    for start, last in zip(starts, ends, strict=True):
        if tokens[start].text.lower() != "true":
            yield kind, tokens[start].start, tokens[last].end, neutral


def _listed(kind: str, tokens: list[_Token], index: int) -> Iterator[tuple[str, int, int, str]]:
    """Remove each element of a list that has several."""
    depth = tokens[index].depth
    until, _ = _until(tokens, index)
    commas = [place for place in range(index, until) if tokens[place].depth == depth and tokens[place].text == ","]
    if commas:
        yield kind, tokens[index].start, tokens[commas[0] + 1].start, ""
    for comma, last in zip(commas, [*commas[1:], until], strict=True) if commas else ():
        yield kind, tokens[comma].start, tokens[last - 1].end, ""
