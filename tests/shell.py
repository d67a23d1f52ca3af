"""Runs shell commands of the guide and of the help: ours in this process, all others in bash."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from entityframes.cli import cli, main

#: Commands that need something unavailable (a server, a key, the network) or do not end are checked, not run.
ELSEWHERE = (
    "postgresql://",
    "postgresql+psycopg://",
    "alembic",
    "openai",
    "--watch",
    "pip install",
    "--latency-ms",
    "tests.torture",
)


class Shell:
    """Runs a shell block: our commands in this process, everything else in bash."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.status = 0

    def run(self, block: str) -> str:
        return "".join(self._command(command) for command in commands(block))

    def _command(self, command: str) -> str:
        if setting := re.fullmatch(r"export (\w+)=(\S+)", command):
            self._monkeypatch.setenv(*setting.groups())
            return ""
        words = tokens(command)
        if "entityframes" not in words or "<<" in command:
            return "" if any(word in command for word in ELSEWHERE) else self._bash(command, "")
        out = ""
        for part in split(words, "|"):
            target = None
            if ">" in part:
                at = part.index(">")
                target, part = part[at + 1], part[:at]
            if part[0] != "entityframes":
                out = self._bash(shlex.join(part), out)
            elif any(word in command for word in ELSEWHERE):
                check(part[1:])
                return ""
            else:
                out = self._ours(part[1:], out)
            if target is not None:
                Path(target).write_text(out, "utf-8")
                out = ""
        return out

    def _bash(self, command: str, given: str) -> str:
        done = subprocess.run(
            ["bash", "-c", f"(exit {self.status})\n{command}"], input=given.encode(), capture_output=True, timeout=120
        )
        self.status = done.returncode
        return (done.stdout + done.stderr).decode()

    def _ours(self, arguments: list[str], given: str) -> str:
        streams = [io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8") for text in (given, "", "")]
        before = sys.argv, sys.stdin, sys.stdout, sys.stderr
        sys.argv = ["entityframes", *arguments]
        sys.stdin, sys.stdout, sys.stderr = streams
        try:
            main()
        except SystemExit as end:
            self.status = int(end.code or 0)
        finally:
            sys.argv, sys.stdin, sys.stdout, sys.stderr = before
        for stream in streams[1:]:
            stream.flush()
        return "".join(stream.buffer.getvalue().decode() for stream in streams[1:])


def commands(block: str) -> Iterator[str]:
    """The commands of a shell block, with their continuation lines and here-documents."""
    lines = iter(block.splitlines())
    for line in lines:
        command = line
        while command.endswith("\\"):
            command = command[:-1].rstrip() + " " + next(lines).strip()
        if here := re.search(r"<<'?(\w+)'?", command):
            for following in lines:
                command += "\n" + following
                if following == here[1]:
                    break
        command = re.sub(r"\s+# .*$", "", command) if "\n" not in command else command
        if command.strip() and not command.startswith("#"):
            yield command


def tokens(command: str) -> list[str]:
    reader = shlex.shlex(command.partition("\n")[0], posix=True, punctuation_chars="|<>")
    reader.whitespace_split = True
    reader.commenters = ""
    return list(reader)


def split(words: list[str], separator: str) -> Iterator[list[str]]:
    part: list[str] = []
    for word in words:
        if word == separator:
            yield part
            part = []
        else:
            part.append(word)
    yield part


def check(arguments: list[str]) -> None:
    """Check that a command has the options that it is given."""
    command = cli.commands[arguments[0]]
    command.make_parser(click.Context(command, help_option_names=["-h", "--help"])).parse_args(arguments[1:])
