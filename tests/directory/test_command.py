"""The sync command: what it prints, and its exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import entityframes as ef
from tests.command import run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "notes"
    root.mkdir()
    return root


def test_sync(url: str, root: Path) -> None:
    """A dry run, a sync, and one with nothing to do; lines for people and JSON for scripts."""
    (root / "post").mkdir()
    (root / "post/a.md").write_text("---\ntitle: A\n---\ntext\n")
    planned = run("sync", root, "--dry-run", "--store", url)
    assert planned.returncode == 0, planned.stderr
    assert "create    post/a.md -> post/a" in planned.stdout
    assert "nothing was written" in planned.stdout
    first = run("sync", root, "--store", url)
    assert first.returncode == 0, first.stderr
    assert "1 created" in first.stdout
    (root / "post/b.md").write_text("new")
    planned = run("sync", root, "--dry-run", "--store", url)
    assert "post/b.md" in planned.stdout
    assert "post/a.md" not in planned.stdout
    planned = run("sync", root, "--dry-run", "--json", "--store", url)
    assert [json.loads(line)["path"] for line in planned.stdout.splitlines()] == ["post/b.md"]
    assert "1 created" in run("sync", root, "--store", url).stdout
    again = json.loads(run("sync", root, "--store", url, "--json").stdout)
    assert again["ok"]
    assert again["changes"] == []
    assert again["counts"]["unchanged"] == 2


@pytest.mark.duckdb
def test_folders_that_are_left_out_are_reported(root: Path, tmp_path: Path) -> None:
    """A note names the option that includes them, until the user has chosen what is left out."""
    store = tmp_path / "store.duckdb"
    (root / "_posts").mkdir()
    (root / "_posts/a.md").write_text("text")
    first = run("sync", root, "--store", store)
    assert (first.returncode, "no files" in first.stdout) == (0, True)
    assert "(_posts): --ignore '!_*' takes them in" in first.stderr
    second = run("sync", root, "--store", store, "--ignore", "!_*")
    assert "1 created" in second.stdout
    assert "note" not in second.stderr
    (root / ".efignore").write_text("_posts/\n")
    assert "names that begin" not in run("sync", root, "--store", store).stderr


@pytest.mark.duckdb
def test_what_is_left_unchanged_is_reported(root: Path, tmp_path: Path) -> None:
    """For files that are gone, a note names the option that deletes their entities."""
    store = tmp_path / "store.duckdb"
    for name in "abc":
        (root / f"{name}.md").write_text(name)
    assert run("sync", root, "--store", store).stderr == ""
    for name in "ab":
        (root / f"{name}.md").unlink()
    for words in (["--dry-run"], []):
        stderr = run("sync", root, "--store", store, *words).stderr
        assert "note: 2 left alone" in stderr
        assert "deletions are applied only with --delete" in stderr
    assert "--max-delete 2 allows them" in run("sync", root, "--store", store, "--delete").stderr
    (root / "bad.md").write_bytes(b"caf\xe9")
    stderr = run("sync", root, "--store", store).stderr
    assert ("failed: bad.md" in stderr, stderr.count("left alone")) == (True, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [(), ("--dry-run",), ("--json",), ("--dry-run", "--json"), ("--import",), ("--import", "--dry-run")]
)
@pytest.mark.parametrize(("what", "status"), [("fine", 0), ("bad", 1), ("conflict", 1), ("missing", 2)])
def test_the_exit_status_says_what_is_wrong(
    root: Path, tmp_path: Path, what: str, status: int, words: tuple[str, ...]
) -> None:
    """0 if all can be synced, 1 if a file cannot or both sides changed, 2 without a folder; the same in a dry run."""
    url = tmp_path / "store.duckdb"
    (root / "a.md").write_text("one")
    assert run("sync", root, "--store", url).returncode == 0
    (root / "b.md").write_text("new")
    if what == "bad":
        (root / "c.md").write_bytes(b"caf\xe9")
    elif what == "conflict":
        with ef.connect(url) as store:
            (root / "a.md").unlink()
            store.upsert_entity("note", "a", "three")
    elif what == "missing":
        root.rename(tmp_path / "elsewhere")
    assert run("sync", root, "--store", url, "--delete", *words).returncode == status


@pytest.mark.parametrize("command", [("sync", "--dry-run"), ("sync", "--dry-run", "--json")])
def test_nobody_reads_what_a_sync_prints(root: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    """The reader of the output stops early, as `head` does: no error, and no message."""
    for number in range(1_000):
        (root / f"{'a long name ' * 10}{number}.md").write_text("text")
    words = [sys.executable, "-m", "entityframes", *command, str(root), "--store", str(tmp_path / "store.duckdb")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        stderr = process.stderr.read().decode()
        assert process.wait(60) == 0, stderr
    assert "Traceback" not in stderr
    assert "Broken" not in stderr


def test_conflicts_and_bad_files_end_with_1(url: str, root: Path) -> None:
    """Each is reported with its path and its reason."""
    (root / "a.md").write_text("one")
    (root / "bad.md").write_bytes(b"caf\xe9")
    assert run("sync", root, "--store", url).returncode == 1
    (root / "a.md").write_text("two, longer")
    with ef.connect(url) as store:
        store.upsert_entity("note", "a", "three")
    ended = run("sync", root, "--store", url)
    assert ended.returncode == 1
    assert "conflict: a.md: both the file and the entity changed" in ended.stderr
    assert "failed: bad.md: line 1" in ended.stderr
    assert run("sync", root, "--on-conflict", "files", "--store", url).returncode == 1
    assert (root / "a.md.conflict").read_text() == "three"


@pytest.mark.duckdb
def test_what_cannot_be_done_ends_with_2(root: Path, tmp_path: Path) -> None:
    """A missing folder and incompatible options are reported in one line."""
    for words in (
        ("nowhere",),
        (root, "--import", "--on-conflict", "store"),
        (root, "--export", "--on-conflict", "files"),
    ):
        ended = run("sync", *words, "--store", tmp_path / "x.duckdb")
        assert ended.returncode == 2
        assert "Traceback" not in ended.stderr


@pytest.mark.slow
@pytest.mark.duckdb
def test_watch_stops_at_a_signal(root: Path, tmp_path: Path) -> None:
    """SIGTERM ends it after the current sync, with exit status 0."""
    (root / "a.md").write_text("one")
    store = tmp_path / "x.duckdb"
    command = [sys.executable, "-m", "entityframes", "sync", str(root), "--watch", "--store", str(store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert "1 created" in process.stdout.readline()
        (root / "b.md").write_text("two")
        assert "1 created" in process.stdout.readline()
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=120) == 0, process.stderr.read()


@pytest.mark.slow
@pytest.mark.duckdb
def test_a_watch_reports_what_is_left_out_when_that_changes(root: Path, tmp_path: Path) -> None:
    """Not after every sync, but again once there is more of it."""
    command = ["sync", str(root), "--watch", "--store", str(tmp_path / "x.duckdb")]
    (root / "_one").mkdir()
    (root / "_one/x.md").write_text("left out")
    (root / "a.md").write_text("a")
    with subprocess.Popen(
        [sys.executable, "-m", "entityframes", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:

        def until_created() -> None:
            while "1 created" not in process.stdout.readline():
                assert process.poll() is None

        until_created()
        (root / "b.md").write_text("b")
        until_created()
        (root / "_two").mkdir()
        (root / "_two/x.md").write_text("left out")
        (root / "c.md").write_text("c")
        until_created()
        os.kill(process.pid, signal.SIGTERM)
        notes = [line for line in process.communicate(timeout=120)[1].splitlines() if line.startswith("note: ")]
    assert [("_one" in note, "_two" in note) for note in notes] == [(True, False), (True, True)], notes


@pytest.mark.duckdb
def test_what_is_left_out_is_reported_at_every_depth(root: Path, tmp_path: Path) -> None:
    """Subfolders, hidden ones, files with other suffixes, links: listed with their reason, and not failures."""
    for path in ("a.md", "docs/_posts/b.md", "docs/x.png", ".git/c.md"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("text")
    (root / "nothing.md").symlink_to("nowhere")
    (root / "docs/folder").symlink_to("_posts")
    store = tmp_path / "store.duckdb"
    for words in (["--dry-run"], [], ["--json"]):
        ended = run("sync", root, "--store", store, *words)
        assert ended.returncode == 0, ended.stderr
        output = ended.stderr + ended.stdout
        for name in ("docs/_posts", ".git", ".png", "nothing.md", "docs/folder"):
            assert name in output, (words, output)
    assert "1 file in all (docs/_posts): --ignore '!_*' takes them in" in run("sync", root, "--store", store).stderr


@pytest.mark.duckdb
def test_a_template_is_reported_with_its_file(root: Path, tmp_path: Path) -> None:
    """With file, line, and remedy."""
    (root / "t.md").write_text("---\ntitle: {{title}}\n---\n")
    ended = run("sync", root, "--store", tmp_path / "store.duckdb")
    assert ended.returncode == 1
    assert "failed: t.md: line 2: {{title}} is a template placeholder" in ended.stderr
    assert ".efignore" in ended.stderr
