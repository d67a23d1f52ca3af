"""Passages: every visible character in one, cut at structure, at places that an edit elsewhere does not move."""

from __future__ import annotations

import hashlib
import json
import random
import re
import textwrap
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import entityframes as ef
from entityframes.embedding.passages import VERSION

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
    if not content.strip():
        assert [passage.text for passage in cut] == (
            [" ".join(title.split())[: passages.size]] if title and title.strip() else []
        )
        return
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
    "unit", [".", ",", ")", "`", "~~~\n", "```x\n", "\n", " ", "a. ", "# A\n", "|", "|\n", "-", "[", "。", "\u0301", "🇩", "1. "]
)  # fmt: skip
@pytest.mark.parametrize("end", ["", "x"])
def test_repetitive_texts(unit: str, end: str) -> None:
    """No pattern reads a run of characters again and again: 300,000 of any would take hours then."""
    content = unit * (300_000 // len(unit)) + end
    covered = sum(len(piece) for piece in pieces(content, size=5_000))
    assert covered >= len("".join(content.split()))


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


def pieces(content: str, **options: Any) -> list[str]:
    """The passages as they stand in the text."""
    return [content[passage.start : passage.end] for passage in ef.Passages(**options).cut(content)]


def headings(content: str, **options: Any) -> list[str]:
    return [passage.heading for passage in ef.Passages(**options).cut(content)]


def test_headings() -> None:
    """Those that hold for all of a passage; of both kinds, without markup, and none in code blocks."""
    page = textwrap.dedent("""\
        # The `store` {#store}

        Introduction to it all.

        Reading
        -------

        ### [Filters](filters.md) ##

        ```
        # no heading
        ```

        ## Writing

        To a table.
        """)
    assert headings(page, size=100) == ["The store", "The store > Reading > Filters", "The store > Writing"]
    assert set(headings(page, size=100, format="text")) == {""}
    # All of it fits into one passage: only the first heading holds for it.
    assert headings(page) == ["The store"]
    assert headings("## A\n\ntext\n\n# B\n\ntext") == [""]
    assert headings("#no heading\n\n####### nor this") == [""]
    [deep] = ef.Passages().cut("# A\n\n#### B\n\ntext")
    assert deep == (0, 17, "A > B", "A > B\ntext")


def test_headings_that_follow_each_other_without_a_blank_line() -> None:
    """A line above an underline is a heading there too; below text it is text."""
    assert headings("# A\nB\n---\n\ntext") == ["A > B"]
    assert headings("A\n===\nB\n---\n### C\ntext") == ["A > B > C"]
    assert headings("# A\n\ntext\nB\n---\n\ntext") == ["A"]


@pytest.mark.parametrize("level", range(1, 7))
def test_a_heading_of_any_level_is_a_better_place_than_a_paragraph(level: int) -> None:
    """Its section is a passage, and the paragraphs before it are another."""
    before, section = (
        "First one here.\n\nSecond one here.\n\nThird one here.",
        f"{'#' * level} Part\n\nFourth one here.",
    )
    assert pieces(f"{before}\n\n{section}", size=60) == [before, section]


def test_a_line_of_blanks_is_a_blank_line() -> None:
    """It separates paragraphs, and does not separate a heading from its text."""
    for blank in ("", " ", "\t", "  \t "):
        heading = f"# Moths\n{blank}\nA sentence about them."
        assert pieces(f"{heading} Another one here.", size=40) == [heading, "Another one here."]
        paragraphs = ["Two sentences. In\none.", "Another paragraph."]
        assert pieces(f"\n{blank}\n".join(paragraphs), size=30) == paragraphs


def test_a_heading_stays_with_its_text() -> None:
    """And with the first heading below it; a heading at the end, or above a section without text, is not lost."""
    sections = "\n\n".join(f"# Part {n}\n\n## Chapter {n}\n\n{'word ' * 20}" for n in range(4))
    for passage in ef.Passages(size=160).cut(sections):
        assert passage.heading.endswith(passage.text.splitlines()[0].removesuffix(" > "))
        assert "word" in passage.text
        assert passage.heading.count(">") == 1
    [last] = ef.Passages().cut("# The end\n")
    assert last == (0, 9, "The end", "The end")
    [empty] = ef.Passages().cut("# A\n\n# B\n\ntext")
    assert empty == (0, 14, "", "# A\n\n# B\n\ntext")


def test_titles() -> None:
    """In front of every passage, in one line, unless its first heading says the same; a blank text has only its title."""
    passages = ef.Passages(size=80, title_fields=("title",))
    text = "# Moths\n\nGrace found one."
    assert [passage.text for passage in passages.cut(text, "A  log\nbook")] == ["A log book\nMoths\nGrace found one."]
    assert [passage.text for passage in passages.cut(text, "moths")] == ["Moths\nGrace found one."]
    assert [passage.text for passage in passages.cut("text", "")] == ["text"]
    # Only the second of these headings fits, so that the title is no repetition.
    deep = passages.cut("# Moths\n\n## A heading of more words\n\ntext", "Moths")
    assert [passage.text.splitlines()[:2] for passage in deep] == [["Moths", "A heading of more wo"]]
    assert passages.cut(" \n", "Only a title") == [(0, 0, "", "Only a title")]
    assert passages.cut(" \n") == passages.cut("", " ") == []


def test_long_titles_and_headings_leave_room_for_text() -> None:
    """At most an eighth and a quarter of the size; the innermost heading is kept, the whole path is returned."""
    content = f"# {'outer ' * 20}\n\n## inner\n\n{'word ' * 100}"
    passages = ef.Passages(size=100).cut(content, "title " * 50)
    assert {passage.text.splitlines()[0] for passage in passages} == {"title title"}
    inner = [passage for passage in passages if passage.heading == f"{('outer ' * 20).strip()} > inner"]
    assert len(inner) > 5
    assert {passage.text.splitlines()[1] for passage in inner} == {"inner"}
    assert max(len(passage.text) for passage in passages) <= 100
    # A line that is too long for a heading is text.
    assert headings(f"# {'x' * 300}\n\ntext") == [""]


CODE = "```python\nfirst = 1\n\n# a comment\nsecond = 2\n```"
TABLE = "| name | value |\n|-|-|\n| first | 1. One |\n| second | 2. Two |"


@pytest.mark.parametrize("solid", [CODE, CODE.replace("```", "~~~~"), TABLE], ids=["code", "tildes", "table"])
def test_code_blocks_and_tables_stay_whole(solid: str) -> None:
    """If they fit, whatever stands around them."""
    for before in range(0, 60, 3):
        content = f"{'word ' * before}\n\n{solid}\n\n{'word ' * (60 - before)}"
        assert any(solid in piece for piece in pieces(content, size=150)), before


def test_code_blocks_and_rows_that_do_not_fit() -> None:
    """A code block is cut at its blank lines, else at lines; a table between rows; a row at sentences and words."""
    functions = "\n\n".join(f"def f{n}():\n    return {n}" for n in range(20))
    assert all(piece.removeprefix("```\n").startswith("def") for piece in pieces(f"```\n{functions}\n```", size=100))
    lines = "\n".join(f"call({n})" for n in range(60))
    assert all(line.startswith(("```", "call")) for piece in pieces(f"```\n{lines}\n```", size=100) for line in [piece])
    rows = "\n".join(f"| {n} | a sentence. And one more |" for n in range(30))
    cut = pieces(f"| a | b |\n|-|-|\n{rows}", size=100)
    assert all(piece.startswith("|") and piece.endswith("|") for piece in cut)
    assert cut[0].startswith("| a | b |\n|-|-|\n| 0 |")
    long = pieces(f"| {'A sentence of words. ' * 20}|", size=100)
    assert all(piece.endswith((".", "|")) for piece in long)


def test_lines_of_code_and_rows_that_fit_are_not_cut_at_sentences() -> None:
    """Also if they are all of a block or table that does not fit."""
    assert pieces("```\ncall(). More of it.\n```", size=20) == ["```", "call(). More of it.", "```"]
    rows = ["| One. Two | b |", "|-|-|", "| Three. Four | d |"]
    assert pieces("\n".join(rows), size=20) == rows


def test_a_code_block_that_is_never_closed_is_text() -> None:
    """Headings below it are headings, and the blocks below it are blocks."""
    assert headings("```\n\n# A\n\ntext\n\n# B\n\n" + "word " * 20, size=60)[-1] == "B"
    page = "# A\n\n```sh\nls\n\n# B\n\n```sh\n# no heading\n```\n\n# C\n\n" + "word " * 20
    assert headings(page, size=60)[-1] == "C"
    assert set(headings(page, size=20)) == {"A", "B", "C"}


@pytest.mark.parametrize(
    ("content", "size", "expected"),
    [
        ("One paragraph here.\n\nAnother one there.", 30, ["One paragraph here.", "Another one there."]),
        ("- first item here\n- second item here\n", 20, ["- first item here", "- second item here"]),
        ("1. First item\n   continued. Here\n2. Second item\n", 35, ["1. First item\n   continued. Here", "2. Second item"]),
        ("It is, e.g. this. And that one too.", 20, ["It is, e.g. this.", "And that one too."]),
        ("A sentence that\nwraps. Another one.", 25, ["A sentence that\nwraps.", "Another one."]),
        ("一つの文です。もう一つの文です。", 10, ["一つの文です。", "もう一つの文です。"]),
        ("यह एक वाक्य है। यह दूसरा है।", 16, ["यह एक वाक्य है।", "यह दूसरा है।"]),
        ("one,two;three/four", 9, ["one,", "two;", "three/", "four"]),
        ("a\r\n\r\nbb\r\n\r\nccc", 3, ["a", "bb", "ccc"]),
        ("   indented\n\n", 20, ["   indented"]),
    ],
)  # fmt: skip
def test_the_best_place_is_taken(content: str, size: int, expected: list[str]) -> None:
    """Paragraphs, list items, sentences, words, punctuation; white space around passages belongs to none."""
    assert pieces(content, size=size) == expected


def test_plain_text_has_no_list_items() -> None:
    """A paragraph that begins with a dash or a number is a paragraph, as good a place as any other."""
    for first in ("- ", "1. "):
        paragraphs = ["Intro.", f"{first}They said one. And said another thing."]
        assert pieces("\n\n".join(paragraphs), size=44, format="text") == paragraphs


def test_a_line_of_megabytes_is_cut_between_words() -> None:
    """Also if passages are larger than the part of a long line in which words are usually looked for."""
    assert {len(piece) % 5 for piece in pieces("word " * 600_000, size=2_500_000)} == {4}


def test_characters_that_belong_together() -> None:
    """Marks, joiners, modifiers, flags, viramas and Hangul syllables are cut only if one of them is too long by itself."""
    clusters = ["👩🏽‍🚀", "🇩🇪", "e\u0301\u0323", "क्षि", "เที่", "한", "𝔘", "é", "👍🏿", "ก็"]
    for form in ("NFC", "NFD"):
        parts = [unicodedata.normalize(form, cluster) for cluster in clusters] * 10
        starts = {sum(map(len, parts[:n])) for n in range(len(parts))}
        cut = ef.Passages(size=16).cut("".join(parts))
        assert len(cut) > 10
        assert {passage.start for passage in cut} <= starts
    assert [len(piece) for piece in pieces("e" + "\u0301" * 99, size=60)] == [50, 50]


def test_overlap() -> None:
    """The last words of a passage are repeated, within its section, and count."""
    content = "# A\n\n" + " ".join(f"word{n}" for n in range(60)) + "\n\n# B\n\nanother section"
    cut = ef.Passages(size=100, overlap=25).cut(content)
    assert max(len(passage.text) for passage in cut) <= 100
    for one, other in pairwise(cut):
        if one.heading == other.heading:
            assert 0 < one.end - other.start <= 25
            assert content[other.start - 1].isspace()
    assert cut[-1].text == "B\nanother section"


WORDS = re.findall(
    r"\w+", "the a store frame row column of and batch engine query result plan with from key value table"
)


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(5, 20))).capitalize() + "."


def lines_of(kind: str, rng: random.Random) -> Iterator[str]:
    """Lines of a text of this kind, without end."""
    number = 0
    while True:
        number += 1
        if kind == "paragraphs":
            yield sentence(rng) + "\n\n"
        elif kind == "lines":
            yield sentence(rng) + "\n"
        elif kind == "one line":
            yield sentence(rng) + " "
        elif kind == "wrapped":
            yield "\n".join(textwrap.wrap(" ".join(sentence(rng) for _ in range(30)), 80)) + "\n"
        elif kind == "chinese":
            yield "".join(chr(rng.randint(0x4E00, 0x9FA5)) for _ in range(rng.randint(8, 30))) + "。"
        elif kind == "no spaces":
            yield "".join(rng.choice("abcdefghij0123456789") for _ in range(50))
        elif kind == "csv":
            yield f"{number},{rng.random():.4f},{rng.choice(['red', 'green', 'blue'])}\n"
        elif kind == "equal widths":
            yield f"{number:06},{rng.randint(1000, 9999)},abc\n"
        elif kind == "log":
            yield f"2026-11-30 12:{number % 60:02}:{rng.randint(10, 59)} INFO worker {rng.randint(1, 4)} done\n"
        elif kind == "equal lines":
            yield "the same line\n"
        elif kind == "code":
            yield f"def function_{number}(x):\n    y = x + {rng.randint(1, 99)}\n    return y * y\n\n\n"
        else:
            yield (
                f"## Section {number}\n\n" + "\n\n".join(sentence(rng) * 3 for _ in range(rng.randint(1, 12))) + "\n\n"
            )


KINDS = [
    "paragraphs", "lines", "one line", "wrapped", "chinese", "no spaces", "csv", "equal widths", "log", "equal lines",
    "code", "sections",
]  # fmt: skip


def text_of(kind: str, rng: random.Random, length: int) -> str:
    parts: list[str] = []
    for line in lines_of(kind, rng):
        parts.append(line)
        length -= len(line)
        if length < 0:
            break
    return "".join(parts)


def edited(content: str, rng: random.Random, action: str) -> str:
    """A line, or in a text of one line a piece of it, is deleted, inserted, changed or appended; no heading is."""
    lines = content.splitlines(keepends=True)
    if len(lines) == 1:
        lines = textwrap.wrap(content, 60, drop_whitespace=False, replace_whitespace=False, break_on_hyphens=False)
    bodies = [n for n, line in enumerate(lines) if not line.startswith("#") and line.strip()]
    at = rng.choice(bodies)
    if action == "deleted":
        del lines[at]
    elif action == "inserted":
        lines.insert(at, "A new line, with some words." + "\n" * lines[at].endswith("\n"))
    elif action == "changed":
        middle = len(lines[at]) // 2
        lines[at] = lines[at][:middle] + "xyz" + lines[at][middle:]
    else:
        lines.append("An appended line." + "\n" * lines[-1].endswith("\n"))
    return "".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_is_local(kind: str) -> None:
    """In a text of 100 kB, of any kind: one or two new passages on average, never many, and one or two at the end."""
    rng = random.Random(kind)
    content = text_of(kind, rng, 100_000)
    passages = ef.Passages(format="markdown" if kind == "sections" else "text")
    before = {passage.text for passage in passages.cut(content)}
    new = {
        action: [
            len({passage.text for passage in passages.cut(edited(content, rng, action))} - before)
            for _ in range(1 if action == "appended" else 8)
        ]
        for action in ("deleted", "inserted", "changed", "appended")
    }
    assert new["appended"][0] <= 2
    several = [n for action in ("deleted", "inserted", "changed") for n in new[action]]
    assert max(several) <= 5, new
    # Equal lines make equal passages, so few texts are there at all.
    assert len(before) <= 8 or sum(several) / len(several) <= 2, new


def test_boundaries_are_those_of_the_version() -> None:
    """A change that moves one embeds every text again: it needs a new version, and a new digest here."""
    digest = hashlib.sha256()
    for kind in KINDS:
        content = text_of(kind, random.Random(kind), 20_000)
        for options in ({}, {"size": 120}, {"size": 300, "overlap": 30}, {"format": "text"}):
            cut = ef.Passages(**options).cut(content, "A title")  # type: ignore[arg-type]
            digest.update(repr([(*passage[:3], passage.text) for passage in cut]).encode())
    assert (VERSION, digest.hexdigest()[:16]) == (1, "6a725180e3c31b30")


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(0, 2**32),
    st.sampled_from(["deleted", "inserted", "changed", "appended"]),
    st.integers(60, 1_200),
    st.integers(0, 40),
)
def test_edits_are_local_for_any_size(kind: str, seed: int, action: str, size: int, overlap: int) -> None:
    """An edit changes passages around it only: all others are found again, moved by the difference in length."""
    rng = random.Random(seed)
    content = text_of(kind, rng, 20 * size)
    passages = ef.Passages(size=size, overlap=overlap, format="markdown" if kind == "sections" else "text")
    before = {passage.text for passage in passages.cut(content)}
    after = {passage.text for passage in passages.cut(edited(content, rng, action))}
    assert len(after - before) <= 10
