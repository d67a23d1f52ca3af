"""Runs the command line in this process, which takes a twentieth of the time of a separate process."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from entityframes.cli import main


class Ran(NamedTuple):
    """The exit status and the output of a command."""

    returncode: int
    stdout: str
    stderr: str


def run(*words: object, cwd: Path | None = None, stdin: bytes = b"") -> Ran:
    """Run ``entityframes`` with these arguments, in a folder, without a terminal."""
    given, out, errors = (io.TextIOWrapper(io.BytesIO(data), "utf-8") for data in (stdin, b"", b""))
    before = Path.cwd()
    os.chdir(cwd or before)
    try:
        argv = ["entityframes", *map(str, words)]
        with mock.patch.multiple(sys, argv=argv, stdin=given, stdout=out, stderr=errors):
            main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    finally:
        os.chdir(before)
    printed = []
    for stream in (out, errors):
        stream.flush()
        printed.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    assert "Traceback" not in printed[1], printed[1]
    return Ran(code, *printed)
