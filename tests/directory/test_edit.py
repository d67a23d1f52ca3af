"""Front matter in which one field changes: all other lines keep their bytes, and the result has the expected values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given, settings

import entityframes as ef
from entityframes.directory import markdown
from entityframes.directory.markdown import parse, render
from entityframes.metadata.canonical_json import canonical_json
from tests.examples import examples

FRONT = """# of the author
title: "A title"  # kept
version: 3.10   # not 3.1

date: 2024-05-01
published: yes
ratio: 1.0
tags: [a, 'b', "c"]  # tags
links:
- first
# between
- name: x
  url: http://a.b/c#d
nested:
    deep:
        key: value  # of the key
        single: 'one'
    other: 1e5
text: |
  one
  two

folded: >-
  a
  b
map: {a: 1, b: [x, y]}
empty:  # nothing yet
# at the end
"""


def changed(front: str, **fields: Any) -> str:
    """The front matter with changed fields (`...` removes one), which reads back as exactly these."""
    header = f"---\n{front}---\n".encode()
    metadata = json.loads(parse(header).metadata)
    for name, value in fields.items():
        if value is ...:
            del metadata[name]
        else:
            metadata[name] = value
    text = canonical_json([json.dumps(metadata)])[0][0]
    data = render(text, "body", header)
    assert canonical_json([parse(data).metadata])[0][0] == text
    assert data.startswith(b"---\n")
    assert data.endswith(b"---\nbody")
    return data[4 : -len("---\nbody")].decode()


@pytest.mark.parametrize(
    ("fields", "old", "new"),
    [
        ({"title": "Another: title"}, '"A title"', '"Another: title"'),
        ({"title": "two\nlines"}, '"A title"', '"two\\nlines"'),
        ({"version": "3.11"}, "3.10 ", '"3.11" '),
        ({"version": 3.2}, "3.10", "3.2"),
        ({"date": "2024-06-30"}, "2024-05-01", "2024-06-30"),
        ({"published": "no"}, "published: yes", "published: no"),
        ({"published": True}, "published: yes", "published: true"),
        ({"ratio": 12345678901234567890}, "1.0", "12345678901234567890"),
        ({"tags": ["a", "b", "c", "d e"]}, '"c"]', '"c", d e]'),
        ({"tags": ["a", "b", "c", "x, y"]}, '"c"]', '"c", "x, y"]'),
        ({"map": {"a": 1, "b": ["x", "y"], "c": "d}"}}, "y]}", 'y], c: "d}"}'),
        ({"tags": ["a", "c"]}, "[a, 'b', \"c\"]", '[a, "c"]'),
        ({"tags": ["a", "x, 'y'", "c"]}, "'b'", "'x, ''y'''"),
        ({"tags": []}, "[a, 'b', \"c\"]", "[]"),
        ({"links": ["first", {"name": "z", "url": "http://a.b/c#d"}]}, "name: x", "name: z"),
        ({"links": ["new", "first", {"name": "x", "url": "http://a.b/c#d"}]}, "- first", "- new\n- first"),
        ({"links": ["first"]}, "- name: x\n  url: http://a.b/c#d\n", ""),
        ({"links": [{"name": "x", "url": "http://a.b/c#d"}, [1]]}, "- first\n# between\n- name: x\n  url: http://a.b/c#d\n",
         "# between\n- name: x\n  url: http://a.b/c#d\n-   - 1\n"),
        ({"nested": {"deep": {"key": "else", "single": "one"}, "other": "1e5"}}, "key: value", "key: else"),
        ({"nested": {"deep": {"single": "one"}, "other": "1e5"}}, "        key: value  # of the key\n", ""),
        ({"nested": {"deep": {"key": "value", "single": "one", "new": [1]}, "other": "1e5"}}, "        single: 'one'\n",
         "        single: 'one'\n        new:\n          - 1\n"),
        ({"nested": None}, FRONT[FRONT.index("nested:") : FRONT.index("text:")], "nested: null\n"),
        ({"text": "three\n"}, "  one\n  two\n", "  three\n"),
        ({"text": ...}, "text: |\n  one\n  two\n", ""),
        ({"folded": "c d"}, "folded: >-\n  a\n  b\n", "folded: c d\n"),
        ({"map": {"a": 2, "b": ["x", "z"], "c": "{}"}}, "{a: 1, b: [x, y]}", '{a: 2, b: [x, z], c: "{}"}'),
        ({"map": {"b": ["x", "y"]}}, "{a: 1, b: [x, y]}", "{b: [x, y]}"),
        ({"empty": "text"}, "empty:", "empty: text"),
        ({"empty": ["x"]}, "empty:  # nothing yet\n", "empty:  # nothing yet\n  - x\n"),
        ({"empty": ...}, "empty:  # nothing yet\n", ""),
        ({"added": {"x": 1}}, "# at the end\n", "# at the end\nadded:\n  x: 1\n"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_only_what_changed_is_another(fields: dict[str, Any], old: str, new: str, line_end: str) -> None:
    """Quotes, comments, order, dates and digits of all other fields are preserved."""
    if new.startswith("# between"):
        new = new.replace("-   - 1", "- - 1")
    front = FRONT.replace("\n", line_end)
    assert front.count(old.replace("\n", line_end)) == 1
    header = f"---{line_end}{front}---{line_end}".encode()
    metadata = {**json.loads(parse(header).metadata), **fields}
    metadata = {name: value for name, value in metadata.items() if value is not ...}
    text = canonical_json([json.dumps(metadata)])[0][0]
    data = render(text, "body", header)
    expected = front.replace(old.replace("\n", line_end), new.replace("\n", line_end))
    assert data.decode() == f"---{line_end}{expected}---{line_end}body"
    assert canonical_json([parse(data).metadata])[0][0] == text


@pytest.mark.parametrize(
    ("front", "fields", "expected"),
    [
        # All of it in brackets.
        ("{title: A, tags: [x, 'y']}  # kept\n", {"title": "B"}, "{title: B, tags: [x, 'y']}  # kept\n"),
        # A key in brackets that has no value.
        ("map: {a, b: ['x']}  # kept\n", {"map": {"a": 1, "b": ["x"]}}, "map: {a: 1, b: ['x']}  # kept\n"),
        # Items whose keys are in no order.
        ("links:\n- url: u  # kept\n  name: x\n- url: v\n  name: 'y'\n",
         {"links": [{"name": "new"}, {"name": "x", "url": "u"}, {"name": "y", "url": "v"}]},
         "links:\n- name: new\n- url: u  # kept\n  name: x\n- url: v\n  name: 'y'\n"),
    ],
)  # fmt: skip
def test_what_stands_in_other_orders_and_places(front: str, fields: dict[str, Any], expected: str) -> None:
    """Only what differs is written anew there, too."""
    assert changed(front, **fields) == expected


def test_a_field_below_a_text_that_keeps_empty_lines() -> None:
    """When removed, the blank lines below it are removed, too; everything else is preserved."""
    front = "kept: |+\n  one\n\ngone: x\n\n# a comment\nlast: text  # beside\n"
    assert changed(front, gone=...) == "kept: |+\n  one\n\n# a comment\nlast: text  # beside\n"


def test_nothing_left_but_comments() -> None:
    """They are preserved; front matter without any is removed."""
    assert render("{}", "body", b"---\n# why\na: 1\n---\n") == b"---\n# why\n---\nbody"
    assert render("{}", "body", b"---\na: 1\n\n---\n") == b"body"
    assert render("{}", "body", b"\xef\xbb\xbf---\na: 1\n---\n") == b"\xef\xbb\xbfbody"
    assert render('{"a":1}', "body", b"---\n# why\n---\n") == b"---\n# why\na: 1\n---\nbody"


#: A field in different spellings, with different surroundings.
VALUES = st.one_of(
    st.sampled_from(
        [
            "text", "'single'", '"double"', "3.10", "1.0", "0x1F", "2024-05-01", "2024-05-01 10:00:00", "yes", "~", "", "null",
            "true", "12", "1.5", "-7", "[a, b]", "[ a, 'b' ]", "[]", "{a: 1}", "{ a: x, b: [1, 2] }", "{}", "http://x.y/#z",
            "'it''s'", '"a\\tb"', "a text of several words", "é 👋", "[a,\n  b]", "a\n  b", '"a\n  b"', "+49", "1e5",
        ]
    ),
    st.sampled_from(
        [
            "|\n  one\n  two", ">-\n  one\n\n  two", "|+\n  one\n", "\n  - a\n  - 'b'  # b", "\n- a\n# between\n-\n- c: 1\n  d: 2",
            "\n  x: 1  # x\n  # own\n  y:\n      z: [a]", "\n    - - a\n      - b\n    - c", "# says nothing\n  - a", "|  # block\n  one",
        ]
    ),
)  # fmt: skip
COMMENTS = st.sampled_from(["", "", "\n", "# a comment\n", "\n# a: comment\n\n"])
FIELDS = st.lists(st.tuples(COMMENTS, VALUES, st.sampled_from(["", "  # beside", " "])), min_size=1, max_size=6)
NEW = st.recursive(
    st.one_of(
        st.sampled_from(["new", "3.11", "2024-06-01", "no", "it's", "a: b", "# x", "one\ntwo\n", "", "[x", "12", " "]),
        st.integers(-5, 5),
        st.sampled_from([1.5, True, None]),
    ),
    lambda values: st.one_of(
        st.lists(values, max_size=3), st.dictionaries(st.sampled_from("abxyz"), values, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=examples(400), deadline=None)
@given(FIELDS, st.data(), st.sampled_from(["\n", "\r\n"]))
def test_other_lines_are_never_touched(fields: list[tuple[str, str, str]], data: st.DataObject, line_end: str) -> None:
    """For any front matter, and any new value of one of its fields."""
    chunks = []
    for number, (comment, value, beside) in enumerate(fields):
        one_line = "\n" not in value and not value.startswith(("#", "|", ">"))
        chunks.append((comment, f"key{number}: {value}{beside if one_line else ''}\n"))
    front = "".join(map("".join, chunks)).replace("\n", line_end)
    header = f"---{line_end}{front}---{line_end}".encode()
    metadata = json.loads(parse(header).metadata)
    number = data.draw(st.integers(0, len(chunks)))
    key = f"key{number}"
    old = metadata.get(key)
    what = data.draw(st.sampled_from(["value", "inside", "delete"]))
    if what == "delete" and key in metadata and len(metadata) > 1:
        # A blank line below the field would become part of the string above it.
        assume(not (number and chunks[number - 1][1].split(": ")[1].startswith("|+")))
        del metadata[key]
    elif what == "inside" and isinstance(old, list):
        items = [
            *old[: data.draw(st.integers(0, len(old)))],
            data.draw(NEW),
            *old[data.draw(st.integers(0, len(old))) :],
        ]
        metadata[key] = items
    elif what == "inside" and isinstance(old, dict):
        metadata[key] = {**old, data.draw(st.sampled_from("abxyz")): data.draw(NEW)}
    else:
        metadata[key] = data.draw(NEW)
    text = canonical_json([json.dumps(metadata)])[0][0]
    assert text is not None
    result = render(text, "body", header).decode()
    before = "".join(map("".join, chunks[:number])) + (chunks[number][0] if number < len(chunks) else "")
    after = "".join(map("".join, chunks[number + 1 :]))
    assert result.startswith(f"---\n{before}".replace("\n", line_end))
    assert result.endswith(f"{after}---\nbody".replace("\n", line_end).removesuffix("body") + "body")
    assert canonical_json([parse(result.encode()).metadata])[0][0] == text


def test_digits_and_dates_through_the_store(store: ef.EntityStore, tmp_path: Path) -> None:
    """One field changed in the store, by a program that reads all of the metadata and writes it back."""
    root = tmp_path / "notes"
    (root / "note").mkdir(parents=True)
    (root / "note/a.md").write_text(f"---\n{FRONT}---\nbody\n")
    folder = ef.DirectorySync(store, root)
    folder.sync().raise_for_failures()
    entity = store.get_entity("note", "a")
    assert (entity["metadata"]["version"], entity["metadata"]["ratio"]) == ("3.10", "1.0")
    assert entity["metadata"]["date"] == "2024-05-01"
    store.upsert_entity("note", "a", entity["content"], {**entity["metadata"], "title": "Edited"})
    assert folder.sync().counts["exported"] == 1
    assert (root / "note/a.md").read_text() == f"---\n{FRONT}---\nbody\n".replace('"A title"', '"Edited"')
    assert set(folder.plan()["action"]) == {"unchanged"}
    other = tmp_path / "other"
    other.mkdir()
    ef.DirectorySync(store, other).export_files().raise_for_failures()
    assert (other / "note/a.md").read_bytes() == (root / "note/a.md").read_bytes()
    store.upsert_entity("note", "b", "new", {"version": "3.10", "date": "2024-05-01"})
    folder.sync()
    assert markdown.parse((root / "note/b.md").read_bytes()).metadata == '{"date":"2024-05-01","version":"3.10"}'
