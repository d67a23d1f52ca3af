"""Parsing and rendering markdown files: no byte changes without an edit, and nothing is guessed."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import assume, example, given, settings

from entityframes.directory import frontmatter
from entityframes.directory.markdown import Document, MarkdownError, join, parse, render
from entityframes.metadata.canonical_json import canonical_json
from tests.examples import examples

BOM = b"\xef\xbb\xbf"


def metadata(yaml_text: str) -> str:
    return parse(f"---\n{yaml_text}\n---\n".encode()).metadata


@pytest.mark.parametrize(
    ("data", "document"),
    [
        (b"", (b"", "", "{}")),
        (b"text", (b"", "text", "{}")),
        (b"---\na: 1\n---\ntext\n", (b"---\na: 1\n---\n", "text\n", '{"a":1}')),
        (b"--- \t\na: 1\n...\ntext", (b"--- \t\na: 1\n...\n", "text", '{"a":1}')),
        (b"---\r\na: 1\r\nb: x\r\n---\r\nx\r\ny\n", (b"---\r\na: 1\r\nb: x\r\n---\r\n", "x\r\ny\n", '{"a":1,"b":"x"}')),
        (BOM + b"---\na: 1\n---\ntext", (BOM + b"---\na: 1\n---\n", "text", '{"a":1}')),
        (BOM + b"text", (BOM, "text", "{}")),
        (BOM + BOM + b"text", (BOM, "\ufefftext", "{}")),
        (b"---\n---\ntext", (b"---\n---\n", "text", "{}")),
        (b"---\n# nothing\n\n---\n\ntext", (b"---\n# nothing\n\n---\n", "\ntext", "{}")),
        (b"---\na: 1\n---", (b"---\na: 1\n---", "", '{"a":1}')),
        (b"---\na: 1\n---\n---\nb: 2\n---\n", (b"---\na: 1\n---\n", "---\nb: 2\n---\n", '{"a":1}')),
        (b"---\n\nA thematic break above.\n", (b"", "---\n\nA thematic break above.\n", "{}")),
        (b"---", (b"", "---", "{}")),
        (b"---\nJust text\n---\nmore", (b"", "---\nJust text\n---\nmore", "{}")),
        (b"---\n~\n---\n", (b"", "---\n~\n---\n", "{}")),
        (b"---\n\n- a\n- b: c\n---\n", (b"", "---\n\n- a\n- b: c\n---\n", "{}")),
        (
            b"---\n\n# A title: with a colon\n\nand `text`\n\n---\nx",
            (b"", "---\n\n# A title: with a colon\n\nand `text`\n\n---\nx", "{}"),
        ),
        (b"---\n\n> quoted: text: here\n\n---\n", (b"", "---\n\n> quoted: text: here\n\n---\n", "{}")),
        (b"---\n**bold**: text\n@someone\n---\n", (b"", "---\n**bold**: text\n@someone\n---\n", "{}")),
        (b"---\ntext, [a link](b\n\n---\n", (b"", "---\ntext, [a link](b\n\n---\n", "{}")),
        (b'---\ntitle: "{{title}}"\n---\n', (b'---\ntitle: "{{title}}"\n---\n', "", '{"title":"{{title}}"}')),
        (b"--- a: 1\n---\n", (b"", "--- a: 1\n---\n", "{}")),
        (b"----\na: 1\n---\n", (b"", "----\na: 1\n---\n", "{}")),
        (b"\n---\na: 1\n---\n", (b"", "\n---\na: 1\n---\n", "{}")),
        ("---\nü: é\n---\n東京".encode(), ("---\nü: é\n---\n".encode(), "東京", '{"ü":"é"}')),
    ],
)
def test_parts_of_a_file(data: bytes, document: tuple[bytes, str, str]) -> None:
    """Where the header ends and the body begins; both are preserved."""
    assert parse(data) == Document(*document)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("~", "null"), ("null", "null"), ("NULL", "null"), ("", "null"), ("nUll", '"nUll"'),
        ("true", "true"), ("False", "false"), ("TRUE", "true"), ("yes", '"yes"'), ("on", '"on"'), ("Off", '"Off"'), ("y", '"y"'),
        ("0", "0"), ("-12", "-12"), ("007", '"007"'), ("+49", '"+49"'), ("1_000", '"1_000"'), ("1,5", '"1,5"'), ("-", None),
        ("0x1F", '"0x1F"'), ("0o17", '"0o17"'), ("0b1", '"0b1"'), ("1:30", '"1:30"'), ("12:30:45", '"12:30:45"'), ("-0", '"-0"'),
        ("123456789012345678901234567890", "123456789012345678901234567890"), ("9" * 4301, f'"{"9" * 4301}"'),
        ("1.10", '"1.10"'), ("1.", '"1."'), (".5", '".5"'), ("-.5e3", '"-.5e3"'), ("1e5", '"1e5"'), ("12E+03", '"12E+03"'),
        ("1.5", "1.5"), ("-0.25", "-0.25"), ("1.0", '"1.0"'), ("1e+16", "1e+16"), ("!!float 3.10", "3.1"), ("!!int 0x1F", "31"), (".", '"."'),
        ("1.4.2", '"1.4.2"'), ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
        ("1e999", '"1e999"'), ("-1234e5678", '"-1234e5678"'), ("0x" + "f" * 5000, '"0x' + "f" * 5000 + '"'), ("٣", '"٣"'),
        ("2024-05-01", '"2024-05-01"'), ("2024-05-01T10:00:00Z", '"2024-05-01T10:00:00Z"'), ("=", '"="'), ("v1", '"v1"'),
        ('"5"', '"5"'), ("'true'", '"true"'), ('"\\u00e9\\n\\x41"', '"é\\nA"'), ("it's # a comment", '"it\'s"'),
        ("!!str 5", '"5"'), ("!!int '5'", "5"), ("!!float 5", "5"), ("!!bool true", "true"), ("!!null ~", "null"),
        ("!!seq [1, {}]", "[1,{}]"), ("!!map {a: [b, 1]}", '{"a":["b",1]}'), ("[a, 'b', 1.5, ~]", '["a","b",1.5,null]'),
        ("|\n  a\n  b", '"a\\nb\\n"'), (">-\n  a\n  b", '"a b"'), ("\n- a\n-\n- - b", '["a",null,["b"]]'), ("a\n  b", '"a b"'),
    ],
)  # fmt: skip
def test_what_values_stand_for(text: str, value: str | None) -> None:
    """Values that do not round-trip as numbers, and ambiguous values, are strings, in both code paths."""
    if value is None:
        with pytest.raises(MarkdownError):
            metadata(f"key: {text}")
        return
    assert metadata(f"key: {text}") == f'{{"key":{value}}}'
    assert frontmatter._parsed_json(f"key: {text}\n") == f'{{"key":{value}}}'


def test_keys_are_text() -> None:
    """Always a string, even if it looks like another type."""
    text = "2024: a\non: b\n~: c\nnull: d\n1.0: e\n'<<': f\n? long\n: g\n?\n: h\n!!int 7: i\n\"q\\t\": j"
    assert list(json.loads(metadata(text)).items()) == [
        ("2024", "a"), ("on", "b"), ("~", "c"), ("null", "d"), ("1.0", "e"), ("<<", "f"), ("long", "g"), ("", "h"), ("7", "i"),
        ("q\t", "j"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "line", "reason"),
    [
        (b"---\na: 1\n", 1, "the front matter that begins on line 1 has no closing ---"),
        (b"---\r\ntitle:\r\n", 1, "no closing ---"),
        (b"---\na: 1\ntitle: {{title}}\n---\n", 3, "{{title}} is a template placeholder.*in quotes.*efignore"),
        (b"---\ntags: [a, {{ tag }}]\n---\n", 2, "{{ tag }} is a template placeholder"),
        (b"---\na: b\n{% if x %}\nb: c\n{% endif %}\n---\n", 3, "{% if x %} is a template placeholder"),
        (b"---\ndate: {{date}} {{time}}\n---\n", 2, "{{date}} is a template placeholder"),
        (b"---\n{{ front }}\n---\n", 2, "{{ front }} is a template placeholder"),
        (b"---\nlong key: b: c\n---\n", 2, "mapping values"),
        (b"---\n\"a b\": 1\ntext", 1, "no closing ---"),
        (b"---\na: 1\nb: *x\n---\n", 3, "the alias \\*x"),
        (b"---\na: 1\n*x : 1\n---\n", 3, "the alias \\*x"),
        (b"---\na: &x 1\n---\n", 2, "the anchor &x"),
        (b"---\na: &x [1]\n---\n", 2, "the anchor &x"),
        (b"---\n&x a: 1\n---\n", 2, "the anchor &x"),
        (b"---\na: !!python/object/apply:os.system ['true']\n---\n", 2, "the tag tag:yaml.org,2002:python/object"),
        (b"---\na: ! important\n---\n", 2, "the tag !; quote a string that begins with !"),
        (b"---\na: !secret x\n---\n", 2, "the tag !secret"),
        (b"---\n!x a: 1\n---\n", 2, "the tag !x"),
        (b"---\n!!set\na: 1\n---\n", 2, "the tag tag:yaml.org,2002:set"),
        (b"---\na: !!binary eA==\n---\n", 2, "the tag tag:yaml.org,2002:binary"),
        (b"---\na: !!int x\n---\n", 2, "the tag !!int on a value of another type"),
        (b"---\na: !!int 1.5\n---\n", 2, "the tag !!int"),
        (b"---\na: !!bool yes\n---\n", 2, "the tag !!bool"),
        (b"---\nb: 1\n<<: {a: 1}\n---\n", 3, "the merge key"),
        (b"---\na: 1\nb: 2\na: 3\n---\n", 4, 'the duplicate key "a"'),
        (b"---\na: {b: 1, 'b': 2}\n---\n", 2, 'the duplicate key "b"'),
        (b"---\n? [a]\n: 1\n---\n", 2, "a key that is a list or a mapping"),
        (b"---\n{a: 1}: 1\n---\n", 2, "a key that is a list or a mapping"),
        (b"---\na: .inf\n---\n", 2, "which is not a valid JSON number"),
        (b"---\na: [-.INF, .nan]\n---\n", 2, "which is not a valid JSON number"),
        (b"---\na: " + b"[" * 60 + b"]" * 60 + b"\n---\n", 2, "nesting deeper than 50"),
        (b"---\na: b: c\n---\n", 2, "mapping values are not allowed"),
        (b"---\na: 1\n\tb: 2\n---\n", 3, "tab character"),
        (b"---\nb: 1\na: 'x\n\n---\n", 3, "end of stream"),
        (b"---\na: \x07\n---\n", 2, "a character that YAML does not allow"),
        (b"---\na: 1\n\nb: x\0\n---\n", 4, "a character that YAML does not allow"),
        ("---\nü: ü\nb: \ufffe\n---\n".encode(), 3, "a character that YAML does not allow"),
        (b"---\na: 1\n--- {b: 2}\n---\n", 3, "a second document"),
        (b"---\n%TAG ! tag:x,2000:\na: 1\n---\n", 3, "expected <document start>"),
        (b"---\na: " + b"x" * (1 << 20) + b"\n---\n", 1, "larger than 1 MiB"),
        (b"---\na: \xff\n---\n", 2, "byte 0xff at offset 7 is not UTF-8"),
        (b"a\nb\ncaf\xe9\n", 3, "byte 0xe9 at offset 7 is not UTF-8"),
        (b"a\xed\xa0\x80", 1, "byte 0xed at offset 1"),
        ("a: é".encode("utf-16"), 1, "the file is UTF-16, not UTF-8"),
        ("\ufeffa".encode("utf-16-be"), 1, "the file is UTF-16"),
        ("a".encode("utf-32"), 1, "the file is UTF-32"),
        ("\ufeffa".encode("utf-32-be"), 1, "the file is UTF-32"),
    ],
    ids=lambda value: ascii(value)[:40],
)  # fmt: skip
def test_refusals_say_where_and_why(data: bytes, line: int, reason: str) -> None:
    """With the line of the file, counted from 1."""
    with pytest.raises(MarkdownError, match=reason) as caught:
        parse(data)
    assert caught.value.line == line
    assert str(caught.value).startswith(f"line {line}: ")


def test_fifty_levels_are_read_and_written() -> None:
    """The limit itself is allowed, for reading and writing."""
    nested: Any = "x"
    for level in range(49):
        nested = [nested] if level % 2 else {"k": nested}
    text = json.dumps({"k": nested})
    assert same(parse(render(text, "body")).metadata, text)
    with pytest.raises(MarkdownError, match="deeper than 50"):
        render(json.dumps({"k": {"k": nested}}), "body")
    with pytest.raises(MarkdownError, match="recursion|deeper"):
        render('{"k":' + "[" * 100_000 + "]" * 100_000 + "}", "body")


BOMBS = """
import resource
from entityframes.directory.markdown import MarkdownError, parse
from tests.directory.bombs import bombs
with open("/proc/self/statm") as statm:
    limit = int(statm.read().split()[0]) * resource.getpagesize() + (256 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for name, bomb in bombs((1 << 20) - 100).items():
    try:
        answer = "read"
        parse(f"---\\n{bomb}\\n---\\n".encode())
    except MarkdownError as error:
        answer = str(error)[:60]
    print(name, "|", answer, flush=True)
"""


@pytest.mark.slow
def test_bombs_end_and_take_little_memory() -> None:
    """Case 43 of the fault catalogue: each is read or rejected, with at most 256 MB more than the package itself needs.

    That none takes much longer when it is longer is measured by `python -m benchmarks guard`.
    """
    run = subprocess.run([sys.executable, "-c", BOMBS], capture_output=True, text=True, timeout=1_200)
    assert run.returncode == 0, run.stdout + run.stderr
    answers = dict(line.split(" | ") for line in run.stdout.splitlines())
    assert len(answers) == 30
    assert {name for name, answer in answers.items() if answer == "read"} == {
        "colons", "hex", "digits", "float", "exponent", "fields", "items", "comments", "plain lines", "words", "pipe", "dots", "spaces",
    }  # fmt: skip


class Digits(str):
    """A random JSON number, digit by digit."""


def dumped(value: Any) -> str:
    """JSON in which the numbers are written as drawn."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {dumped(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{','.join(map(dumped, value))}]"
    return str(value) if isinstance(value, Digits) else json.dumps(value, ensure_ascii=False)


def same(first: str, second: str) -> bool:
    """Whether two texts are the same JSON object."""
    canonical, errors, _ = canonical_json([first, second])
    assert errors == [None, None]
    return canonical[0] == canonical[1]


WORDS = [
    "", "~", "null", "true", "No", "on", "y", "1", "007", "+1", "1_000", "0x1F", "0o7", "0b1", "1e5", "1.", ".5", "-.5e3", ".inf",
    ".NaN", "1e999", "12:30", "2024-05-01", "2024-05-01 10:00:00", "<<", "=", "-", "- a", "? a", "a: b", "a:", ":a", "a #b", "#a",
    "&a", "*a", "!a", "%a", "@a", "`a", "|", ">", "'a'", '"a"', "[a]", "{a}", "a, b", " a", "a ", "---", "...", "--- a", "a\nb",
    "a\n", "a\n\n", "\na", "a\n b", " a\nb", "a\n\tb", "a \nb", "a\n---\nb", "a\r\nb", "a\tb", "\t", "a\x85b", "a\u2028b", "\ufeffa",
    "\x07", "\x7f", "\ufffe", "\U0001ffff", "\xa0", "é", "東京", "👋", "\\", "\\n", "C:\\x", "a" * 1100, "é" * 600, "http://a.b/c#d",
]  # fmt: skip
TEXT = st.one_of(
    st.sampled_from(WORDS),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
    st.text(st.sampled_from(" \n\t\r:#-'\"[]{}&*!|>%@`,?~a1.\\é\u2028\x85"), max_size=12),
)
NUMBERS = st.one_of(
    st.from_regex(r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,40})?([eE][-+]?[0-9]{1,2})?", fullmatch=True).map(Digits),
    st.sampled_from(["1e-999", "-0", "-0.0", "0e0", "1E400", "9" * 400, "9" * 4300, "1.7976931348623157e308"]).map(
        Digits
    ),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
)
VALUES = st.recursive(
    st.one_of(TEXT, NUMBERS, st.booleans(), st.none()),
    lambda values: st.one_of(st.lists(values, max_size=4), st.dictionaries(TEXT, values, max_size=4)),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=6)
CONTENTS = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=30),
    st.sampled_from(
        [
            "",
            "---\na: 1\n---\nb",
            "---\r\n---\r\n",
            "---\n\nx",
            "---",
            "---\na: 1\n",
            "\ufeff",
            "\ufeff---\n---\n",
            "...\n",
            "\r\n",
        ]
    ),
)
HEADERS = st.one_of(
    st.just(b""),
    st.just(BOM),
    st.sampled_from(
        [
            b"---\nb: 1\na: 2\n---\n",
            b"---\r\nb: 1\r\n---\r\n",
            BOM + b"---\r\n---\r\n",
            b"---\na: 1\n---",
            b"---\r\na: *\r\n---\r",
        ]
    ),
)


@settings(max_examples=examples(200), deadline=None)
@given(OBJECTS, CONTENTS, HEADERS)
@example({"a" * 2000: {"b" * 2000: [["c", {"d" * 1100: 1}]]}}, "", b"")
@example({"k": [[], {}, [[]], [{}], {"a": []}, "", None]}, "x", b"")
def test_what_is_rendered_reads_back(value: dict[str, Any], content: str, header: bytes) -> None:
    """Any metadata and any body round-trip, numbers to the last digit."""
    text = dumped(value)
    assume(canonical_json([text])[1] == [None])
    data = render(text, content, header)
    document = parse(data)
    assert document.content == content
    assert same(document.metadata, text)
    assert data.startswith(BOM) == (
        header.startswith(BOM) or (content.startswith("\ufeff") and not header and not value and data[3:6] == b"---")
    )
    if value and b"\r\n" in header:
        assert document.header.count(b"\n") == document.header.count(b"\r\n")
    assert render(document.metadata, content, document.header) == data


@settings(max_examples=examples(150), deadline=None)
@given(
    st.recursive(
        st.one_of(TEXT, st.booleans(), st.none()),
        lambda v: st.one_of(st.lists(v, max_size=3), st.dictionaries(TEXT, v, max_size=3)),
        max_leaves=8,
    )
)
def test_another_reader_of_yaml_sees_the_same(value: Any) -> None:
    """A YAML 1.1 reader, which resolves many more words to other types, loads the same strings."""
    text = json.dumps({"k": value})
    front = parse(render(text, "")).header.decode().split("---\n", 1)[1].rsplit("---\n", 1)[0]
    assert yaml.load(front, yaml.CSafeLoader) == json.loads(text)


@pytest.mark.slow
@settings(max_examples=examples(500), deadline=None)
@given(st.one_of(st.binary(max_size=60), st.tuples(HEADERS, CONTENTS).map(lambda parts: parts[0] + parts[1].encode())))
def test_no_byte_is_lost(data: bytes) -> None:
    """A file is split into its header and body, or is an error; and the parts make up the file again."""
    try:
        document = parse(data)
    except MarkdownError as error:
        assert error.line is not None
        return
    assert document.header + document.content.encode() == data
    assert join(document.header, document.content) == data


@settings(max_examples=examples(150), deadline=None)
@given(HEADERS, CONTENTS)
def test_another_body_below_the_same_header(header: bytes, content: str) -> None:
    """The header is preserved byte for byte unless it lacks a line ending, or the body would be read as a header."""
    try:
        before = parse(header)
    except MarkdownError:
        return
    data = join(before.header, content)
    after = parse(data)
    assert after.content == content
    assert after.metadata == before.metadata
    assert data.startswith(before.header)


LINES = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "title", "x-1", "a_b", "", "on", "1"]),
        st.sampled_from([":", ": ", ":  ", " : ", ":\n- ", ":\n  - ", ":\n   - ", ":\r\n  - "]),
        st.one_of(
            st.sampled_from(
                [
                    "",
                    "a",
                    "a b",
                    "[a, b]",
                    "[a,b ]",
                    "[1, on]",
                    "[a a]",
                    "[]",
                    "a: b",
                    "a:b",
                    "a #b",
                    "a#b",
                    "(x",
                    "/x",
                    "a'",
                    '"a"',
                    "'a'",
                    '"a" b',
                    '"\\n"',
                    "a, b",
                    "a\n  - b",
                    "a\n- b",
                    "a ",
                    "a\t",
                    "1",
                    "true",
                    "~",
                    "a:",
                    "[a",
                    "a]",
                    "x" * 200,
                    "é",
                    "a\xa0#b",
                    "| a",
                    "a:#b",
                    "a::b",
                ]
            ),
            st.text(st.sampled_from("ab1 :#-[],'\"\n\t/(.+é\u2028\xa0"), max_size=8),
        ),
        st.sampled_from(["\n", "\r\n", " \n", "\n\n", " # c\n", "\n  "]),
    ).map("".join),
    max_size=4,
).map("".join)


@settings(max_examples=examples(1000), deadline=None)
@given(LINES)
def test_the_short_way_reads_what_the_parser_reads(front: str) -> None:
    """Fields that are read without the YAML parser have the same values as with it."""
    short = frontmatter._simple_json(front)
    if short is not None:
        assert short == frontmatter._parsed_json(front)


def test_order_line_ends_and_mark_of_the_old_header() -> None:
    """Keys keep their order, and new ones are appended; also in nested mappings and lists of mappings."""
    header = BOM + b"---\r\nz: 1\r\nb: {v: 1, x: 2}\r\na: [{d: 1, c: 2}]\r\n---\r\n"
    text = '{"a":[{"c":3,"d":"4"}],"b":{"u":0,"v":1,"x":2},"new":null,"z":1.50}'
    expected = BOM + b'---\r\nz: 1.5\r\nb: {v: 1, x: 2, u: 0}\r\na: [{d: "4", c: 3}]\r\nnew: null\r\n---\r\nbody\n'
    assert render(text, "body\n", header) == expected


def test_words_that_are_no_text_for_other_readers() -> None:
    """They are quoted, also those that only some readers of YAML 1.1 resolve to another type."""
    assert render('{"a":"y","b":"N","c":"off","d":"yo"}', "") == b'---\na: "y"\nb: "N"\nc: "off"\nd: yo\n---\n'


def test_text_in_lines_is_a_literal_block() -> None:
    """It is written as a readable literal block, or quoted if a block would change it."""
    text = json.dumps({"a": "one\ntwo\n", "b": ["x\n\n y", "z\n\n"], "c": " x\ny", "d": "x \ny"})
    assert render(text, "").decode() == (
        '---\na: |\n  one\n  two\nb:\n  - |-\n    x\n\n     y\n  - |+\n    z\n\nc: " x\\ny"\nd: "x \\ny"\n---\n'
    )


@pytest.mark.parametrize(
    "text", ["[]", "1", '{"a": NaN}', '{"a": "\\ud800"}', '{"a":', json.dumps({"a": "x" * (1 << 20)})]
)
def test_metadata_that_cannot_be_written(text: str) -> None:
    """It is an error, and never written as another value."""
    with pytest.raises(MarkdownError, match="the metadata cannot be written as front matter: "):
        render(text, "body")
    with pytest.raises(MarkdownError):
        render('{"a": 1}', "\ud800")


def test_without_libyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML's own parser gives the same results, and errors on the same lines."""
    front = "a: [1, 'x', {b: 1.5}]\nc: |\n  one\n  two\ne: \"\\u00e9\"\n? f\n: ~\n"
    expected = metadata(front)
    monkeypatch.setattr(frontmatter, "_Parser", yaml.SafeLoader)
    assert metadata(front) == expected == '{"a":[1,"x",{"b":1.5}],"c":"one\\ntwo\\n","e":"é","f":null}'
    for text in ("a: 1\nb: *x", "a: 1\nb: 'x", "a: 1\nb: \x07", "a: 1\nb: " + "[" * 60):
        with pytest.raises(MarkdownError, match="line 3: "):
            metadata(text)
