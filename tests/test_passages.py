"""Passages: every visible character in one, cut at structure, at places that an edit elsewhere does not move."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import entityframes as ef

#: What texts are made of: structure, scripts, line ends, and characters that must not be cut.
PIECES = st.one_of(
    st.sampled_from(
        [
            "\n", "\n\n", "\r\n", "\r\n\r\n", "\r", " ", "\t", ". ", "。", "# A\n", "## B\n", "### C #\n", "Title\n===\n",
            "```\n", "```py\ncode\n\nmore\n```\n", "~~~\n", "| a | b |\n|-|-|\n| 1 | 2 |\n", "- item\n", "  1. nested\n",
            "> quoted\n", "    indented\n", "👩🏽‍🚀", "🇩🇪🇫🇷", "e\u0301", "क्षि", "เที่ยว", "서울", "東京タワー", "é", "\u200b", "𝔘𝔫𝔦",
            "word ", "a longer sentence with some words. ", "x" * 50, "name_of.thing/path:value,", "\u2028", "\x0c",
        ]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=60).map("".join)
OPTIONS = st.builds(
    lambda size, overlap, kind: ef.Passages(size=size, overlap=overlap % size, format=kind),
    st.integers(1, 200),
    st.one_of(st.just(0), st.integers(0, 60)),
    st.sampled_from(["markdown", "text"]),
)


@settings(max_examples=150, deadline=None)
@given(TEXTS, OPTIONS, st.one_of(st.none(), st.text(max_size=30)))
@example("# A\n" * 30, ef.Passages(size=9), "A")
@example("👩🏽‍🚀" * 20, ef.Passages(size=3), None)
def test_every_text_is_covered(content: str, passages: ef.Passages, title: str | None) -> None:
    """In order, within the size, each visible character in one passage, or in more where they overlap."""
    cut = passages.cut(content, title)
    covered: set[int] = set()
    before = None
    for passage in cut:
        assert content[passage.start : passage.end].rstrip() == content[passage.start : passage.end] != ""
        assert len(passage.text) <= passages.size
        if before:
            assert before.start < passage.start + min(passages.overlap, 1)
            assert before.end < passage.end
            assert passage.start >= before.end - passages.overlap
        covered.update(range(passage.start, passage.end))
        before = passage
    assert [at for at, character in enumerate(content) if not character.isspace() and at not in covered] == []
    assert passages.cut(content, title) == cut


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": 0}, ValueError, "size must be at least 1 character, got 0"),
        ({"size": 8.0}, TypeError, "size must be an integer, got 8.0"),
        ({"size": True}, TypeError, "size must be an integer, got True"),
        ({"size": 10, "overlap": 10}, ValueError, "overlap must be at least 0 and less than size (10), got 10"),
        ({"overlap": -1}, ValueError, "overlap must be at least 0 and less than size (800), got -1"),
        ({"overlap": None}, TypeError, "overlap must be an integer, got None"),
        ({"format": "html"}, ValueError, "format must be 'markdown' or 'text', got 'html'"),
        ({"title_fields": "name"}, TypeError, "title_fields must be a list or tuple of field names, got 'name'"),
        (
            {"title_fields": ["name", 1]},
            TypeError,
            "title_fields must be a list or tuple of field names, got ['name', 1]",
        ),
    ],
)
def test_options_are_checked(options: dict[str, Any], error: type[Exception], message: str) -> None:
    """With the value that is wrong, before any text is cut."""
    with pytest.raises(error) as raised:
        ef.Passages(**options)
    assert str(raised.value) == message


def test_options_are_recorded() -> None:
    """The record of a space gives the same passages, whatever kind of list the fields came in."""
    passages = ef.Passages(size=400, overlap=20, format="text", title_fields=["título", "name"])  # type: ignore[arg-type]
    assert passages.title_fields == ("título", "name")
    assert ef.Passages.from_spec(passages.spec()) == passages
    assert hash(passages) == hash(ef.Passages.from_spec(passages.spec()))
    assert "título" in passages.spec()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"version": 99}, "cut by the cutter entityframes 99, but the one installed is entityframes 1"),
        ({"cutter": "other"}, "cut by the cutter other 1, but the one installed is entityframes 1"),
        ({"size": "x"}, "size must be an integer, got 'x'"),
        ({"color": "red"}, "color"),
    ],
)
def test_passages_of_another_cutter_are_refused(changed: dict[str, Any], message: str) -> None:
    """Both versions are named; an unreadable record is shown."""
    spec = json.dumps(json.loads(ef.Passages().spec()) | changed)
    with pytest.raises(ef.SpaceError, match=message):
        ef.Passages.from_spec(spec)
    for spec in ("", "[]", "1", "{}", "null"):
        with pytest.raises(ef.SpaceError, match="which is not readable"):
            ef.Passages.from_spec(spec)
