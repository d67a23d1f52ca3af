"""Pieces of the texts that a search has found, with the words of the query marked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import polars as pl

from entityframes.embedding.words import CHAIN, UNSPACED, Query

#: The number of characters of a piece, and how many of them are before its first mark.
_LENGTH, _BEFORE = 200, 40
#: The numbers of characters and of marks of a text that are considered.
_READ, _MOST = 100_000, 200


class Span(NamedTuple):
    """A place in a text."""

    start: int
    end: int


def snippets(texts: pl.Series, query: str | None) -> list[list[tuple[str, bool]]]:
    """The piece of each text with the most words of a query; its beginning if it has none.

    Args:
        texts: String.
        query: the query; None marks nothing.

    Returns:
        For each text the parts of its piece in order, and whether each is a word of the query.
    """
    short = [" ".join(text[:_READ].split()) for text in texts.cast(pl.String)]
    if query is None or not query.strip():
        return [_piece(text, []) for text in short]
    words = Query(query)
    chains = pl.Series(short, dtype=pl.String).str.extract_all(CHAIN)
    found = words.among(chains.explode().drop_nulls())
    # In scripts that are written without spaces, a chain may be a sentence.
    terms = words.terms["word"]
    unspaced = [term for term in terms if pl.Series([term]).str.contains(UNSPACED).item()]
    pattern = re.compile("|".join(map(re.escape, unspaced))) if unspaced else None
    return [
        _piece(text, _merged(_spans(text, of_text, found, pattern))[:_MOST])
        for text, of_text in zip(short, chains.to_list(), strict=True)
    ]


def _spans(text: str, chains: Sequence[str], found: set[str], pattern: re.Pattern[str] | None) -> Iterator[Span]:
    """The places of those chains of a text that were found."""
    place = 0
    for chain in chains:
        start = text.index(chain, place)
        place = start + len(chain)
        if chain in found:
            inner = [] if pattern is None else [Span(*one.span()) for one in _overlapping(pattern, chain)]
            yield from (Span(start + one.start, start + one.end) for one in inner or [Span(0, len(chain))])


def _overlapping(pattern: re.Pattern[str], chain: str) -> Iterator[re.Match[str]]:
    place = 0
    while match := pattern.search(chain, place):
        yield match
        place = match.start() + 1


def _merged(spans: Iterator[Span]) -> list[Span]:
    """Spans without those that overlap."""
    merged: list[Span] = []
    for span in spans:
        if merged and span.start < merged[-1].end:
            merged[-1] = Span(merged[-1].start, max(merged[-1].end, span.end))
        else:
            merged.append(span)
    return merged


def _piece(text: str, spans: list[Span]) -> list[tuple[str, bool]]:
    """The parts of the piece of a text with the most marks."""
    best = max(
        spans, key=lambda one: sum(one.start <= other.start < one.start + _LENGTH for other in spans), default=None
    )
    start = 0 if best is None else max(0, best.start - _BEFORE)
    if start:
        # Not within a word, if there is a space.
        start = text.find(" ", start, best.start if best else None) + 1 or start
    end = min(len(text), start + _LENGTH)
    if end < len(text):
        # Not within a word either, unless it is a long one.
        space = text.rfind(" ", start + _LENGTH // 2, end)
        end = space if space >= 0 else end
    parts, place = [("… ", False)] if start else [], start
    for span in spans:
        if start <= span.start < end:
            parts += [(text[place : span.start], False), (text[span.start : span.end], True)]
            place = span.end
    parts += [(text[place:end], False), (" …" if end < len(text) else "", False)]
    return [(part, mark) for part, mark in parts if part]
