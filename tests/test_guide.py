"""The user guide: its examples run and print what it shows, and it covers all commands, options and public names."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import click
import polars as pl
import pytest
import yaml

import entityframes as ef
from entityframes.cli import cli
from tests.shell import Shell, commands

GUIDE = Path(__file__).parent.parent / "notebooks" / "guide"
PAGES = sorted(GUIDE.rglob("*.md"))
#: Languages of code blocks: those that run, and those that are only shown. A text block is the expected output of the
#: block before it, with ... for omissions.
RUN, SHOWN = ("python", "bash"), ("text", "sql", "markdown", "yaml")
#: Options of every command that accesses a store, documented once.
SHARED = {"--store", "--namespace", "--json", "--verbose", "-v", "--quiet", "-q", "--help", "-h"}


class Block(NamedTuple):
    language: str
    code: str


def page_name(path: Path) -> str:
    return path.relative_to(GUIDE).with_suffix("").as_posix()


def text_of(path: Path) -> str:
    return path.read_text("utf-8")


def blocks(text: str) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\S*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


def outputs(text: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Block, str]]:
    """Run the blocks of a page in order, in the current folder, and return the output of each."""
    names: dict[str, Any] = {"__name__": "__main__"}
    shell = Shell(monkeypatch)
    for block in blocks(text):
        if block.language == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block.code, "guide", "exec"), names)
            yield block, printed.getvalue()
        elif block.language == "bash":
            yield block, shell.run(block.code)
        else:
            yield block, ""
    for value in names.values():
        if isinstance(value, ef.EntityStore):
            value.close()


def alike(text: str) -> list[str]:
    """Lines without the parts that differ from run to run: seconds and rates."""
    text = re.sub(r"\d+\.\d+ s\b", "N s", text)
    text = re.sub(r'"elapsed": [\d.]+', '"elapsed": N', text)
    text = re.sub(r"[\d,]+ rows/s", "N rows/s", text)
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def shows(expected: str, printed: str) -> bool:
    """Whether a text block matches the output, with ... for anything."""
    pattern = "\n".join(".*" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") for line in alike(expected))
    return re.fullmatch(pattern, "\n".join(alike(printed)), re.DOTALL) is not None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a page: a folder that contains only the guide itself."""
    shutil.copytree(GUIDE, tmp_path / "notebooks" / "guide")
    monkeypatch.chdir(tmp_path)
    for name in ("ENTITYFRAMES_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


#: Older versions print tables with other widths, or other nulls.
CURRENT = int(version("rich").split(".")[0]) >= 15 and int(version("pandas").split(".")[0]) >= 3


@pytest.mark.duckdb
@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_pages_show_the_actual_output(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block and every command runs, and the output is what the page shows with current libraries."""
    printed = ""
    with pl.Config(tbl_width_chars=110):
        for block, output in outputs(text_of(path), monkeypatch):
            assert block.language in RUN + SHOWN, block
            if block.language == "text" and CURRENT:
                assert shows(block.code, printed), f"the page shows\n{block.code}\nbut the output is\n{printed}"
            else:
                printed = output


# The coverage of the guide.


def test_there_are_pages() -> None:
    """Otherwise an empty folder would pass."""
    assert {"index", "concepts", "directories", "embeddings", "guarantees", "limits", "errors", "engines"} <= set(
        map(page_name, PAGES)
    )


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_a_page_is_front_matter_and_markdown(path: Path) -> None:
    """The same fields on each page; short; first heading is the title, first sentence the summary; links work."""
    begin, header, body = text_of(path).split("---\n", 2)
    fields = yaml.safe_load(header)
    assert begin == ""
    assert list(fields) == ["title", "summary", "level", "tags"]
    assert fields["level"] in ("basic", "advanced")
    assert fields["tags"]
    # Only the content is embedded, and its beginning has the most weight.
    assert body.startswith(f"\n# {fields['title']}\n\n{fields['summary']}\n")
    assert text_of(path).count("\n") <= 160
    assert body.count("```") % 2 == 0
    for link in re.findall(r"\]\(([^)#]+)", body):
        assert (path.parent / link).is_file(), link


@pytest.mark.slow
@pytest.mark.duckdb
def test_the_guide_is_a_folder_that_syncs_and_is_found(folder: Path) -> None:
    """Every page becomes an entity, a second sync has nothing to do, and questions find their page."""
    with ef.connect("guide.duckdb") as store:
        sync = ef.DirectorySync(store, "notebooks/guide")
        result = sync.sync(progress=False)
        assert result.counts["created"] == result.rows == len(PAGES)
        assert sync.sync(progress=False).counts["unchanged"] == len(PAGES)
        assert store.embed(ef.WordLlamaEmbedder(), progress=False).ok
        for question, page in {
            "the connection was lost while a batch was committed": "guarantees",
            "how do I correct the rows that failed": "failed-rows",
            "which files of a folder are ignored": "directories",
            "search with a filter on metadata": "search",
            "my import was interrupted": "import-files",
            "what rights does the database user need": "engines",
            "upsert a dataframe into an existing table": "tables",
        }.items():
            assert page in store.search(question, k=3, mode="hybrid")["id"].to_list(), question


def own_options(command: click.Command) -> set[str]:
    return {
        name
        for option in command.params
        if isinstance(option, click.Option)
        for name in (*option.opts, *option.secondary_opts)
    } - SHARED


@pytest.mark.parametrize("name", cli.commands)
def test_every_option_is_in_the_reference(name: str) -> None:
    """Each command has a page with exactly its options; and an example."""
    page = text_of(GUIDE / "command" / f"{name}.md")
    cells = re.findall(r"^\| (`[^|]+) \|", page, re.MULTILINE)
    documented = {word for cell in cells for word in re.findall(r"`(--?[a-z][a-z-]*)", cell)}
    assert documented == own_options(cli.commands[name])
    assert any(command.startswith("entityframes ") for block in blocks(page) for command in commands(block.code))
    assert f"](command/{name}.md)" in text_of(GUIDE / "command-reference.md")


def test_shared_options_are_in_the_reference() -> None:
    """The options of every command, documented once."""
    page = text_of(GUIDE / "command-reference.md")
    assert all(f"`{option}" in page for option in [*SHARED, "--version"])


def test_every_public_name_is_mentioned() -> None:
    """Functions, classes and errors of the package, and the methods of a store, a sync and a result."""
    guide = "\n".join(map(text_of, PAGES))
    names = [*ef.__all__]
    for kind in (ef.EntityStore, ef.DirectorySync, ef.Plan, ef.UpsertResult, ef.EmbedResult, ef.Table, ef.TablePlan):
        names += [name for name in vars(kind) if not name.startswith("_")]
    for base in ef.EntityStore.__mro__:
        names += [name for name in vars(base) if not name.startswith("_")] if base is not object else []
    assert [name for name in names if not re.search(rf"\b{name}\b", guide)] == []


def test_every_kind_of_error_is_explained() -> None:
    """The page on errors has each of them, and the statuses of every outcome."""
    page = text_of(GUIDE / "errors.md")
    assert [name for name in ef.__all__ if name.endswith("Error") and f"`{name}`" not in page] == []
    from entityframes.results import DELETE_STATUSES, EMBED_STATUSES, ERROR_KINDS, SYNC_STATUSES, UPSERT_STATUSES

    statuses = {*UPSERT_STATUSES, *DELETE_STATUSES, *EMBED_STATUSES, *SYNC_STATUSES}
    assert [word for word in [*statuses, *ERROR_KINDS] if f"`{word}`" not in page] == []
