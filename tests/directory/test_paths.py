"""The path codec: every key has one path, and the path decodes to the key on every file system."""

from __future__ import annotations

import itertools
import os
import sys
import unicodedata
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from entityframes.directory.paths import folded, key_of, path_of
from tests.examples import examples

SUFFIXES = (".md", ".mdx", ".markdown", ".txt")

#: What a path must survive: a file system that decomposes names, one that composes them, one that leaves them.
FORMS = (
    lambda path: path,
    lambda path: unicodedata.normalize("NFD", path),
    lambda path: unicodedata.normalize("NFC", path),
)

#: Case 40 of the fault catalogue, and similar ones.
HOSTILE = [
    "../../etc/passwd", "/etc/passwd", "a/../../b", "..", ".", "/", "//", "///", "a//b", "a/", "/a", "a/./b", "a//",
    "CON", "con", "Con.txt", "aux.", "nul ", "NUL .x", "COM1", "lpt9.md", "com¹", "LPT³.x", "CONIN$", "a/prn/b", "com10",
    "line\nbreak", "tab\t", "\r", "\x7f", "\x85", "\u2028", "trailing.", "trailing. . ", "a./b ", " leading", "a/ b", "...",
    "-rf", "--", "x" * 300, "é" * 300, "." * 300, " " * 300, "%" * 300, "CON." + "x" * 300, "x/" * 150, "/" * 300,
    "x" * 198 + ".y", "x" * 199 + "CON", "x" * 201 + "%~", "x" * 200, "x" * 201, "%~" * 150, "x%~", "x%~/y", "%~", "~", "%",
    "100%", "50%41", "%2F", "%2f", "%C3%A9", "%FF", "%00", "%4É", "%C3%AÉ", "%41\u0301", "<\u0338", "C\u0327", "<C\u0327",
    "a:b", "a\\b", "a|b?c*d", '"', "<>", "C:", "C:\\x", "~/x", "$HOME", ".hidden", "_private", "a/.git/config", ".md", "x.md",
    "x.txt", "x.md.md", "\ufeffbom", "rtl\u202egnp", "zero\u200bwidth", "\ufffe", "\U0001ffff", "e\u0301", "é", "\u212b", "Å",
    "\u1100\u1161\u11a8", "각", "가\u11a8", "\u0958", "q\u0301", "\u0301", "a/\u0301b", "\u0344", "👨\u200d👩\u200d👧", "❤\ufe0f",
]  # fmt: skip

ALPHABET = st.one_of(
    st.sampled_from(
        "/%~._ -aAbCDE0149:<|\\\n\t\x85conCONaux¹\u0301\u0327\u0338éÉ각\u1100\u1161\u11a8\u212b≮\u2028\ufeff👩\u200d\ufe0f"
    ),
    st.characters(codec="utf-8", exclude_characters="\0"),
)


def keys(limit: int) -> st.SearchStrategy[str]:
    """Valid text of every length from 1 to `limit` bytes."""
    short = st.text(ALPHABET, min_size=1, max_size=min(limit // 4, 40))
    return st.one_of(
        short,
        st.sampled_from([text for text in HOSTILE if len(text.encode()) <= limit]),
        st.tuples(short, st.integers(1, limit)).map(lambda pair: (pair[0] * pair[1])[: limit // 4]),
    )


def forbidden(component: str) -> str | None:
    """The reason why a component is not valid on Linux, macOS or Windows, or is skipped by the walk; or None."""
    stem = component.split(".")[0].rstrip(" ").upper()
    devices = {
        "CON",
        "PRN",
        "AUX",
        "NUL",
        "CONIN$",
        "CONOUT$",
        *(f"{d}{n}" for d in ("COM", "LPT") for n in "123456789¹²³"),
    }
    reasons = {
        "empty": not component,
        "long": len(component.encode()) > 255,
        "first": component[:1] in "._ ",
        "last": component[-1:] in ". ",
        "character": any(
            character in '<>:"\\|?*/' or unicodedata.category(character) == "Cc" for character in component
        ),
        "device": stem in devices,
        "form": not unicodedata.is_normalized("NFC", component),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


@settings(max_examples=examples(500), deadline=None)
@given(keys(255), keys(1024), st.sampled_from(["._", "."]))
@example("note", "x" * 1024, "._")
@example("é" * 127, "\u0301" * 512, "._")
@example("/", "/" * 1024, "._")
@example("CON." * 63, ("CON." + "x" * 300) * 3, "._")
def test_every_key_has_a_path_that_reads_back(entity_type: str, id: str, skipped: str) -> None:
    """Also if the file system normalises names; and every component is valid on every common file system."""
    path = path_of(entity_type, id, skipped=skipped)
    for component in path.split("/"):
        reason = forbidden(component)
        assert reason is None or (reason == "first" and component[0] not in skipped + ". "), (component, reason)
    for form in FORMS:
        assert key_of(form(path), "default", SUFFIXES, skipped) == (entity_type, id)
    assert path_of(*key_of(path, "default", SUFFIXES, skipped), skipped=skipped) == path


@pytest.mark.parametrize("id", HOSTILE, ids=ascii)
def test_hostile_ids_are_files_in_the_folder(tmp_path: Path, id: str) -> None:
    """Written inside the folder, found by a walk that skips dot and underscore names, read back as the same id."""
    root = tmp_path / "root"
    for entity_type in ("note", id if len(id.encode()) <= 255 else "t"):
        file = root / path_of(entity_type, id)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(id, "utf-8", newline="")
        assert file.resolve().is_relative_to(root.resolve())
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            relative = (Path(folder) / name).relative_to(root).as_posix()
            found[key_of(relative, "default", SUFFIXES)] = (Path(folder) / name).read_bytes().decode()
    assert set(found.values()) == {id}
    assert ("note", id) in found
    assert all(key[1] == id for key in found)
    assert list(tmp_path.iterdir()) == [root]


@pytest.mark.slow
def test_hostile_ids_have_paths_of_their_own() -> None:
    """No two paths collide, except in letter case, which `folded` detects."""
    paths: dict[str, str] = {}
    for id in HOSTILE:
        for form in FORMS[1:]:
            assert paths.setdefault(form(path_of("note", id)), id) == id
    meeting = [
        pair for pair in itertools.combinations(HOSTILE, 2) if len({folded(path_of("n", id)) for id in pair}) == 1
    ]
    assert meeting == [("%2F", "%2f")]


@settings(max_examples=examples(500), deadline=None)
@given(
    st.lists(
        st.text(st.sampled_from("aAéÉe\u0301%2Ff/~.ßs\u200d"), min_size=1, max_size=4),
        min_size=2,
        max_size=2,
        unique=True,
    )
)
def test_only_case_and_unseen_characters_make_paths_meet(ids: list[str]) -> None:
    """Different ids whose folded paths are equal differ only in what folding ignores."""
    first, second = (folded(path_of("n", id)) for id in ids)
    assert (folded(ids[0]) == folded(ids[1])) or first != second


@pytest.mark.slow
def test_every_character_that_normalises_survives() -> None:
    """Each alone, after a base, after an escape, after a digit that could belong to an escape, and at a split."""
    characters = [
        character
        for character in map(chr, itertools.chain(range(1, 0xD800), range(0xE000, sys.maxunicode + 1)))
        if unicodedata.decomposition(character)[:1] not in ("", "<")
        or unicodedata.combining(character)
        or unicodedata.category(character)[0] == "M"
        or not unicodedata.is_normalized("NFC", character)
        or "\u1100" <= character <= "\u11ff"
    ]
    assert len(characters) > 3000
    for character in characters:
        decomposed = unicodedata.normalize("NFD", character)
        for id in (
            character,
            decomposed,
            f"a{character}",
            f":{character}b",
            f"%4{character}",
            f":{decomposed}",
            "x" * 198 + decomposed,
        ):
            path = path_of("n", id)
            for form in FORMS:
                assert key_of(form(path), "d", SUFFIXES) == ("n", id), ascii(id)


@pytest.mark.parametrize(
    ("key", "path"),
    [
        (("note", "README"), "note/README.md"),
        (("note", "100%"), "note/100%.md"),
        (("note", "2024/05/A day, (mostly) at sea!"), "note/2024/05/A day, (mostly) at sea!.md"),
        (("note", "Grüße an 東京 👋"), "note/Grüße an 東京 👋.md"),
        (("note", "etc."), "note/etc..md"),
        (("my_", "a_/b:_"), "my_/a_/b%3A_.md"),
        (("note", "../x"), "note/%2E%2E/x.md"),
        (("note", "a//b"), "note/a/%2Fb.md"),
        (("note", "50%41"), "note/50%2541.md"),
        (("a/b", "CON"), "a%2Fb/%43ON.md"),
        (("note", "e\u0301"), "note/e%CC%81.md"),
        (("note", "x" * 201), f"note/{'x' * 198}%~/xxx.md"),
        (("note", "a. /b. "), "note/a.%20/b. .md"),
    ],
)
def test_paths_are_these(key: tuple[str, str], path: str) -> None:
    """The format of existing folders: names change only if necessary."""
    assert path_of(*key) == path
    assert key_of(path, "default", SUFFIXES) == key


def test_a_suffix_that_is_empty_leaves_no_dot_at_the_end() -> None:
    """A trailing dot or space is escaped if there is no suffix."""
    assert path_of("note", "etc.", suffix="") == "note/etc%2E"
    assert path_of("note", "CON", suffix="") == "note/%43ON"
    assert path_of("note", "a", suffix=".txt") == "note/a.txt"


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("README.md", ("default", "README")),
        ("note/README.MD", ("note", "README")),
        ("note/a.b.markdown", ("note", "a.b")),
        ("note/x.md.txt", ("note", "x.md")),
        ("note/e\u0301.md", ("note", "é")),
        ("note/100%DE.md", ("note", "100%DE")),
        ("note/a%2fb%FF.md", ("note", "a%2fb%FF")),
        ("note/ spaced .md", ("note", " spaced ")),
        ("note/x%~.md", ("note", "x%~")),
    ],
)
def test_files_that_people_made(path: str, key: tuple[str, str]) -> None:
    """Any suffix in any case, the default type in the root, and names that the codec would write differently."""
    assert key_of(path, "default", SUFFIXES) == key


def test_underscores_may_be_names() -> None:
    """They are not escaped if the walk does not skip them; dots are always escaped."""
    assert key_of("_posts/_a.md", "d", SUFFIXES, skipped=".") == ("_posts", "_a")
    assert path_of("_posts", "_a", skipped=".") == "_posts/_a.md"
    assert path_of("_posts", "_a") == "%5Fposts/%5Fa.md"
    assert key_of(".a/b.md", "d", SUFFIXES, skipped="") == (".a", "b")
    assert path_of(".a", "b", skipped="") == "%2Ea/b.md"


def test_the_longest_suffix_counts() -> None:
    """``a.post.md`` is a post if posts have their own suffix."""
    assert key_of("a.post.md", "note", (".md", ".post.md")) == ("note", "a")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("note/a.rst", "the name does not end in .md or .mdx or .markdown or .txt"),
        ("note/.md", "consists of a suffix only"),
        (".md", "consists of a suffix only"),
        ("note/.hidden.md", "begins with '.'"),
        ("_drafts/a.md", "begins with '_'"),
        ("../a.md", r"is empty, '\.' or '\.\.'"),
        ("note/./a.md", r"is empty, '\.' or '\.\.'"),
        ("/etc/a.md", "is empty"),
        ("note//a.md", "is empty"),
        ("note/caf\udce9.md", "the name is not UTF-8"),
        ("note/a\0.md", "a NUL"),
        ("note%~/a.md", "the type is incomplete"),
        ("x" * 256 + "/a.md", "the type is over the limit of 255 bytes"),
        ("note/" + "é" * 513 + ".md", "the id is over the limit of 1024 bytes"),
    ],
)
def test_files_that_are_no_entity(path: str, reason: str) -> None:
    """Rejected with the reason."""
    with pytest.raises(ValueError, match=reason):
        key_of(path, "note", SUFFIXES)


@pytest.mark.parametrize("key", [("", "a"), ("note", ""), ("no\0te", "a"), ("note", "a\0"), ("note", "\ud800")])
def test_keys_that_no_store_holds(key: tuple[str, str]) -> None:
    """Rejected rather than written to a path that decodes to another key."""
    with pytest.raises(ValueError, match="the (type|id) (is empty|contains a NUL|is not UTF-8)"):
        path_of(*key)


def test_folded() -> None:
    """Letter case, normalisation forms, and characters that some file systems ignore."""
    assert folded("Note/README.md") == folded("note/readme.MD")
    assert folded("note/É") == folded("note/e\u0301")
    assert folded("Straße") == folded("STRASSE")
    assert folded("a\u200db") == folded("ab")
    assert folded("note/a") != folded("note/b")
