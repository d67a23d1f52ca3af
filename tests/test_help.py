"""What the command line says about itself: help, its examples, the version, and completion in shells."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import pytest

import entityframes as ef
from entityframes.cli import cli
from tests.command import run
from tests.shell import Shell, commands

PEOPLE = """email,name,bio,country,born
ada@example.org,Ada Lovelace,wrote the first program for analytical engines,UK,1815
alan@example.org,Alan Turing,asked whether computing machinery can think,UK,1912
grace@example.org,Grace Hopper,wrote the first compiler,US,1906
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the examples name, and a store with these people, who are embedded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    Path("people.csv").write_text(PEOPLE)
    Path("people-ids.csv").write_text("id\nada@example.org\nalan@example.org\n")
    Path("airports.dat").write_text("1,Goroka,\\N\n2,Madang,MAG\n")
    Path("routes.csv.gz").write_bytes(gzip.compress(b"airline,source\nBA,LHR\n"))
    Path("notes").mkdir()
    Path("notes/todo.md").write_text("Buy flour.\n")
    people = ["people.csv", "--type", "person", "--id", "email", "--content", "bio"]
    assert run("import", *people).returncode == 0
    assert run("import", "people.csv", "--table", "people", "--create", "--key", "email").returncode == 0
    assert run("embed", "--embedder", "hashing", "--option", "dim=64").returncode == 0
    return tmp_path


def examples_in(text: str) -> list[str]:
    """The commands at the end of a help text."""
    lines = [line.removeprefix("  ") for line in text.partition("\nExamples:\n")[2].splitlines()]
    return [command for command in commands("\n".join(lines)) if not command.startswith("#")]


@pytest.mark.duckdb
@pytest.mark.parametrize("name", [*cli.commands, ""])
def test_the_examples_run_as_they_are_shown(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, on a narrow terminal too, where they are continued by backslashes."""
    monkeypatch.setenv("COLUMNS", "50")
    text = run(*name.split(), "--help").stdout
    shell = Shell(monkeypatch)
    examples = examples_in(text)
    assert examples, text
    for example in examples:
        shell.run(example)
        assert shell.status == 0, example
    complete = (cli.commands[name] if name else cli).examples
    assert examples == list(commands(complete))


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
@pytest.mark.parametrize("name", [*cli.commands, ""])
def test_help_fits_the_terminal(name: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only an option with its values can be longer than a line, and nothing is cut."""
    monkeypatch.setenv("COLUMNS", str(columns))
    text = run(*name.split(), "--help").stdout
    long = [line for line in text.splitlines() if len(line) > min(columns, 100) and not line.lstrip().startswith("-")]
    assert long == []
    assert "..." not in text.replace("[ARGS]...", "").replace("FILE...", "").replace("[ID]...", "").replace(", ...", "")


@pytest.mark.parametrize("name", [*cli.commands, ""])
def test_the_examples_follow_their_title(name: str) -> None:
    """At once, at the end of the help, without blank lines before or after them."""
    text = run(*name.split(), "--help").stdout
    assert text.partition("\nExamples:\n")[2].startswith(("  entityframes ", "  # "))
    assert not text.endswith("\n\n")
    assert "\n\n\n" not in text


def test_help_for_a_terminal_of_unknown_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """0 columns are no width: it has that of a usual terminal."""
    shown = {}
    for columns in ("0", "79", "80"):
        monkeypatch.setenv("COLUMNS", columns)
        shown[columns] = run("import", "--help").stdout
    assert shown["0"] == shown["80"] != shown["79"]


def test_the_list_of_commands() -> None:
    """Each with the first sentence of its help, whole."""
    text = run("--help").stdout
    for name, command in cli.commands.items():
        assert isinstance(command, click.Command)
        first = str(command.help).partition("\n")[0]
        assert dict(cli.commands.help())[name] == first
        assert f"  {name} " in text


def test_every_option_is_in_the_help() -> None:
    """Once, also if the options are in sections."""
    for name, command in cli.commands.items():
        terms = [line.split()[0].rstrip(",") for line in run(name, "--help").stdout.splitlines() if line[:3] == "  -"]
        options = [param for param in command.params if isinstance(param, click.Option)]
        assert sorted(terms) == sorted([*(option.opts[0] for option in options), "-h"]), name


def test_the_variables_are_in_the_help() -> None:
    """Of every command that opens a database."""
    for name in (name for name in cli.commands if name != "completion"):
        text = run(name, "--help").stdout
        assert "$ENTITYFRAMES_URL" in text
        assert "$DATABASE_URL" in text


def test_version() -> None:
    assert run("--version").stdout.split() == ["entityframes,", "version", ef.__version__]


SLOW = ["polars", "pyarrow", "duckdb", "numpy", "rich", "json", "csv"]
if tuple(map(int, version("click").split("."))) >= (8, 5, 1):
    # Older versions look up the size of the terminal with it.
    SLOW.append("shutil")
LOADED = f"print(*[name for name in {SLOW} if name in sys.modules])"


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["completion", "zsh"], ["import", "--help"], ["nonsense"], ["get", "--nonsense"], []],
    ids=" ".join,
)
def test_what_needs_no_database_loads_no_polars(words: list[str]) -> None:
    """Nor a driver, nor what takes long in the standard library: it is there at once."""
    script = f"import atexit, sys\natexit.register(lambda: {LOADED})\nfrom entityframes.cli import main\nmain()"
    ran = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=120)
    assert ran.stdout.splitlines()[-1] == "", ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr


def test_completing_loads_no_polars(tmp_path: Path) -> None:
    """Every press of the key would wait for it."""
    environment = {
        **os.environ, "_ENTITYFRAMES_COMPLETE": "bash_complete", "COMP_WORDS": "entityframes delete --wh", "COMP_CWORD": "2",
    }  # fmt: skip
    script = f"import atexit, sys\natexit.register(lambda: {LOADED})\nfrom entityframes.cli import main\nmain()"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    assert ran.stdout.splitlines() == ["plain,--where", ""], ran.stderr


COMPLETE = """
eval "$(entityframes completion bash)"
COMP_WORDS=({words} '{last}')
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
compopt() {{ echo "complete: $2"; }}
_entityframes_completion entityframes
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "last", "offered"),
    [
        ("entityframes", "ex", ["exists", "export"]),
        ("entityframes delete", "--w", ["--where"]),
        ("entityframes search x --mode", "h", ["hybrid"]),
        ("entityframes embed --embedder", "hash", ["hashing"]),
        ("entityframes import", "peo", ["complete: default", ""]),
        ("entityframes stats --store", "x", ["complete: default", ""]),
        ("entityframes sync", "no", ["complete: dirnames", ""]),
    ],
)
def test_the_script_for_bash(words: str, last: str, offered: list[str], tmp_path: Path) -> None:
    """Sourced as documented, it completes commands, options, their values, files and folders."""
    assert in_shell("bash", COMPLETE.format(words=words, last=last), tmp_path) == offered


def in_shell(shell: str, script: str, folder: Path) -> list[str]:
    """The lines that a script prints, with the command in its path."""
    program = folder / "entityframes"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m entityframes "$@"\n')
    program.chmod(0o755)
    ran = subprocess.run(
        [shell, "-c", script], env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}, cwd=folder,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert not ran.stderr, ran.stderr
    return ran.stdout.splitlines()


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("im", ["import\tImport rows of files as entities, or into a table."]),
        ("get --ty", ["--type\tEntity type of the ids."]),
        ("search x --mode h", ["hybrid"]),
        ("import peo", ["people.csv"]),
    ],
)
def test_the_script_for_fish(line: str, offered: list[str], tmp_path: Path) -> None:
    """With whole descriptions, also if they have commas."""
    (tmp_path / "people.csv").write_text(PEOPLE)
    script = f"entityframes completion fish | source; complete -C 'entityframes {line}'"
    assert [line for line in in_shell("fish", script, tmp_path) if line] == offered


#: Presses the tab key in a shell in a terminal of its own, and prints what is on the line then.
IN_ZSH = r"""
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'PS1=; autoload -U compinit; compinit -u -D; eval "$(entityframes completion zsh)"; print "re""ady"'
zpty -r -m shell out '*ready*'
zpty -w -n shell $'entityframes {line}\t'
zpty -r -m shell out '*{offered}*' && print found
"""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("im", "entityframes import"),
        ("get --ty", "get --type"),
        ("import peo", "import people.csv"),
        ("sync no", "notes"),
    ],
)
def test_the_script_for_zsh(line: str, offered: str, tmp_path: Path) -> None:
    """In an interactive shell, in which alone zsh completes."""
    (tmp_path / "people.csv").write_text(PEOPLE)
    (tmp_path / "notes").mkdir()
    assert in_shell("zsh", IN_ZSH.format(line=line, offered=offered), tmp_path) == ["found"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell(shell: str) -> None:
    code, out, errors = run("completion", shell)
    assert (code, errors) == (0, "")
    assert "_ENTITYFRAMES_COMPLETE" in out
