"""The files under a root: what a walk finds and leaves out, reading, writing, renaming and removing."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import stat
import subprocess
import threading
import time
from pathlib import Path

import polars as pl
import pytest

import entityframes as ef
from entityframes.directory import handles
from entityframes.directory.handles import Folder, Stat
from entityframes.directory.tree import Tree, Write

SUFFIXES = (".md", ".mdx", ".markdown", ".txt")
FILES = {"path": pl.String, "size": pl.Int64, "mtime_ns": pl.Int64, "mark": pl.Int64}
OLD = 1_600_000_000_123_456_789


def fill(root: Path, *paths: str) -> None:
    """Create files that contain their own path."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)


def tree(root: Path, ignore: list[str] | None = None, max_bytes: int = 1_000) -> Tree:
    return Tree(root, SUFFIXES, ignore, max_bytes)


def found(root: Path, ignore: list[str] | None = None) -> list[str]:
    """The paths found by a walk, in order."""
    return tree(root, ignore).walk().files["path"].sort().to_list()


def state(path: Path) -> Stat:
    return Stat.of(path.stat())


def seen(path: Path) -> bytes:
    """The expected hash of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).digest()


def everything(root: Path) -> dict[str, bytes]:
    """All files, hidden ones too."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_walk_finds_files_with_size_and_time(tmp_path: Path) -> None:
    """Files with the suffixes, in folders of any name, with their status."""
    fill(tmp_path, "a.md", "b/c.txt", "b/d/e.markdown", "b/f.mdx", "b.md/g.md", "picture.png", "b/A.MD", "ü/ß.md")
    os.utime(tmp_path / "a.md", ns=(OLD, OLD))
    walk = tree(tmp_path).walk()
    assert walk.files.schema == FILES
    assert sorted(walk.files["path"]) == [
        "a.md",
        "b.md/g.md",
        "b/A.MD",
        "b/c.txt",
        "b/d/e.markdown",
        "b/f.mdx",
        "ü/ß.md",
    ]
    for path, size, mtime_ns, mark in walk.files.rows():
        assert (size, mtime_ns) == state(tmp_path / path)[:2]
        assert mark == state(tmp_path / path).mark
    assert walk.files.row(by_predicate=pl.col("path") == "a.md")[:3] == ("a.md", 4, OLD)
    assert walk.refused.is_empty()
    assert walk.refused.schema == {"path": pl.String, "reason": pl.String}
    assert (walk.unreadable, walk.temporary) == ([], [])


def test_an_empty_folder(tmp_path: Path) -> None:
    """Empty frames, with their dtypes."""
    walk = tree(tmp_path).walk()
    assert walk.files.schema == walk.quarantined.schema == FILES
    assert walk.files.is_empty()


def test_the_root_may_be_a_link(tmp_path: Path) -> None:
    """The root may be a link or a relative path, and does not change with the working directory."""
    fill(tmp_path, "real/a.md")
    (tmp_path / "link").symlink_to("real")
    assert found(tmp_path / "link") == ["a.md"]
    assert tree(tmp_path / "link").write([Write("b.md", b"b")])[0].reason is None
    assert found(tmp_path / "real") == ["a.md", "b.md"]


@pytest.mark.parametrize("what", ["missing", "file"])
def test_a_root_that_is_no_folder(tmp_path: Path, what: str) -> None:
    """An error that names it, and never an empty walk."""
    (tmp_path / "file").touch()
    with pytest.raises(ef.DirectoryError, match=what):
        tree(tmp_path / what).walk()
    with pytest.raises(ef.DirectoryError, match=what):
        tree(tmp_path / what).read(["a.md"])
    with pytest.raises(ef.DirectoryError, match=what):
        tree(tmp_path / what).write([Write("a.md", b"")])
    assert not (tmp_path / "missing").exists()


def test_hidden_names(tmp_path: Path) -> None:
    """Names with a dot or an underscore are left out, files and folders; patterns re-include, and () includes all."""
    visible, hidden = ["a.md", "d/b.md"], [".h.md", "_u.md", ".git/c.md", "_site/e.md", "d/_f/g.md", "d/_f/_h.md"]
    fill(tmp_path, *visible, *hidden)
    assert found(tmp_path) == visible
    assert found(tmp_path, []) == sorted(visible + hidden)
    assert found(tmp_path, ["!_*"]) == sorted(["_u.md", "_site/e.md", "d/_f/g.md", "d/_f/_h.md", *visible])
    assert found(tmp_path, ["!_site"]) == ["_site/e.md", *visible]
    # Including a folder does not include hidden names in it.
    assert found(tmp_path, ["!_f/"]) == ["a.md", "d/_f/g.md", "d/b.md"]


def test_patterns(tmp_path: Path) -> None:
    """Patterns as in gitignore: anchored or not, for folders only, the last matching one wins."""
    fill(tmp_path, "a.md", "drafts/a.md", "x/drafts/b.md", "x/keep.md", "x/c.txt", "drafts.md")
    assert found(tmp_path, ["drafts/"]) == ["a.md", "drafts.md", "x/c.txt", "x/keep.md"]
    assert found(tmp_path, ["/drafts/"]) == ["a.md", "drafts.md", "x/c.txt", "x/drafts/b.md", "x/keep.md"]
    assert found(tmp_path, ["*.md", "!keep.md"]) == ["x/c.txt", "x/keep.md"]
    assert found(tmp_path, ["# a comment", "", "x/**"]) == ["a.md", "drafts.md", "drafts/a.md"]


def test_rules_in_a_folder(tmp_path: Path) -> None:
    """An .efignore applies to its folder and below, and takes precedence over those above it."""
    fill(tmp_path, "a.md", "b/a.md", "b/c/a.md", "b/c/n.md", "n.md", "_u.md")
    (tmp_path / ".efignore").write_bytes(b"\xef\xbb\xbfn.md\r\n!_u.md\r\n")
    (tmp_path / "b" / ".efignore").write_text("/a.md\n!n.md")
    assert found(tmp_path) == ["_u.md", "a.md", "b/c/a.md", "b/c/n.md"]
    assert found(tmp_path, ["c"]) == ["_u.md", "a.md"]
    assert found(tmp_path, []) == ["_u.md", "a.md", "b/c/a.md", "b/c/n.md"]


@pytest.mark.parametrize("where", ["", "b"])
@pytest.mark.parametrize("what", ["link", "folder", "not UTF-8"])
def test_rules_that_cannot_be_read(tmp_path: Path, where: str, what: str) -> None:
    """What they would leave out is not known, so nothing in that folder is read, and nothing is treated as deleted."""
    fill(tmp_path, "a.md", "b/c.md")
    rules = tmp_path / where / ".efignore"
    if what == "link":
        rules.symlink_to("a.md")
    elif what == "folder":
        rules.mkdir()
    else:
        rules.write_bytes(b"\xff\n")
    if not where:
        with pytest.raises(ef.DirectoryError, match=r"\.efignore"):
            tree(tmp_path).walk()
        return
    walk = tree(tmp_path).walk()
    assert walk.files["path"].to_list() == ["a.md"]
    assert walk.refused["path"].to_list() == walk.unreadable == ["b"]
    assert ".efignore" in walk.refused["reason"][0]


def test_a_pattern_that_is_none(tmp_path: Path) -> None:
    """Raised at once, with the pattern."""
    with pytest.raises(ef.DirectoryError, match="!"):
        tree(tmp_path, ["!"])


PATTERNS = [
    *("*.md", "*.txt", "!_*", "!.*", "_*", "a/", "!a/", "b/", "/a", "a/*.md", "**/b", "b/**", "!*.md", "!_d/"),
    *(
        "a/**/c.md",
        "/*",
        "!*/",
        "*/",
        "!/_d",
        "_d",
        "c.md",
        "!c.md",
        "*",
        "a/b",
        "!a/b",
        "[!a]*.md",
        "?.md",
        "!b/_x.md",
    ),
]


@pytest.mark.parametrize("seed", range(40))
def test_rules_mean_what_git_makes_of_them(tmp_path: Path, seed: int) -> None:
    """Random rules in random folders leave the files that git sees with the same rules."""
    if shutil.which("git") is None:
        pytest.skip("git is not there to compare with")
    rng = random.Random(seed)
    for folder in ["", *rng.sample(["a", "b", "_d", ".h", "a/b", "a/_d", "b/a", "_d/b", "_d/_e"], 6)]:
        names = [name for name in ("c.md", "d.txt", "_x.md", ".y.txt", "f.md") if rng.random() < 0.7]
        fill(tmp_path, *(f"{folder or '.'}/{name}" for name in names))
        if (tmp_path / folder).is_dir() and rng.random() < 0.5:
            rules = "\n".join(rng.choices(PATTERNS, k=rng.randint(1, 4)))
            (tmp_path / folder / ".efignore").write_text(rules)
            (tmp_path / folder / ".gitignore").write_text(rules)
    ignore = rng.choices(PATTERNS, k=rng.randint(0, 3)) or None
    ours = found(tmp_path, ignore)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".git" / "info" / "exclude").write_text("\n".join([".*", "_*", *(ignore or ())]) + "\n")
    command = ["git", "-c", "core.excludesFile=/dev/null", "ls-files", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert ours == sorted(path for path in listed.split("\0") if path.endswith(SUFFIXES))


def test_quarantined_files(tmp_path: Path) -> None:
    """They are recognized by their ending, and rules apply to their original name."""
    fill(tmp_path, "a.md", "b/c.md.invalid", "d.md.invalid", "e.png.invalid", "f.md.conflict")
    walk = tree(tmp_path, ["d.md"]).walk()
    assert walk.files["path"].to_list() == ["a.md"]
    assert walk.quarantined["path"].to_list() == ["b/c.md"]
    assert walk.quarantined["mark"].to_list() == [state(tmp_path / "b/c.md.invalid").mark]


def test_reading(tmp_path: Path) -> None:
    """The exact bytes, with hash and state, in order."""
    (tmp_path / "b").mkdir()
    contents = {"b/1.md": b"\xef\xbb\xbfa\r\n", "2.md": b"", "b/3.md": b"\xff\x00", "4.md": b"x" * 1_000}
    for path, data in contents.items():
        (tmp_path / path).write_bytes(data)
        os.utime(tmp_path / path, ns=(OLD, OLD))
    time.sleep(0.1)
    reads = tree(tmp_path).read(list(contents))
    assert [read.path for read in reads] == list(contents)
    for read in reads:
        data = contents[read.path]
        assert (read.data, read.reason, read.gone) == (data, None, False)
        assert read.digest == hashlib.sha256(data).digest()
        assert read.stat == state(tmp_path / read.path)
        assert read.stat[:2] == (len(data), OLD)
        assert read.stable


def test_reading_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operating system may return fewer bytes than asked for."""
    data = bytes(range(200))
    (tmp_path / "a.md").write_bytes(data)
    read = os.read
    monkeypatch.setattr(os, "read", lambda fd, size: read(fd, min(size, 7)))
    (found,) = tree(tmp_path).read(["a.md"])
    assert found.data == data


def test_what_is_not_read(tmp_path: Path) -> None:
    """Too large, gone, a folder: a reason for each, and the others are read."""
    fill(tmp_path, "a.md", "b.md/c.md")
    (tmp_path / "large.md").write_bytes(b"x" * 1_001)
    wanted = ["large.md", "gone.md", "b.md/c.md", "gone/a.md", "b.md/c.md", "b.md", "a.md/a.md", "a.md"]
    reads = tree(tmp_path).read(wanted)
    assert [read.reason for read in reads] == [
        "has 1,001 bytes, more than the limit of 1,000",
        "is gone",
        None,
        "is gone",
        None,
        "is a folder",
        "'a.md' in its path is a link or a file, not a folder",
        None,
    ]
    assert [path for path, read in zip(wanted, reads, strict=True) if read.gone] == ["gone.md", "gone/a.md"]
    data = {path: read.data for path, read in zip(wanted, reads, strict=True) if read.data is not None}
    assert data == {"b.md/c.md": b"b.md/c.md", "a.md": b"a.md"}


@pytest.mark.parametrize(
    "path", ["../a.md", "/etc/passwd", "b/../../a.md", "b//a.md", "./a.md", "", "a.md/", "a\0.md", "a\udc80.md"]
)
def test_paths_that_lead_out(tmp_path: Path, path: str) -> None:
    """Never followed, in any operation."""
    fill(tmp_path, "a.md", "root/b/a.md")
    before = everything(tmp_path)
    root = tree(tmp_path / "root")
    reason = "is not a path inside the folder"
    assert root.read([path])[0].reason == reason
    assert root.write([Write(path, b"new")])[0].reason == reason
    assert root.write([Write(path, b"new", expected=seen(tmp_path / "a.md"))])[0].reason == reason
    assert root.remove(path, seen(tmp_path / "a.md")) == reason
    assert root.rename(path, "c.md", seen(tmp_path / "a.md")) == reason
    assert root.rename("b/a.md", path, seen(tmp_path / "root/b/a.md")) == reason
    assert root.clean([path], older_than=0) == 0
    assert everything(tmp_path) == before


def test_reading_is_cancelled(tmp_path: Path) -> None:
    """The remaining files are not read."""
    fill(tmp_path, "a.md")
    cancel = threading.Event()
    assert len(tree(tmp_path).read(["a.md"] * 3, cancel)) == 3
    cancel.set()
    assert tree(tmp_path).read(["a.md"] * 3, cancel) == []


@pytest.mark.parametrize(
    ("age", "stable"),
    [(0.0, False), (0.2, True), (-60.0, False), ("whole second", False), ("three whole seconds", True)],
)
def test_whether_a_state_is_stable(
    tmp_path: Path, age: float | str, stable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that changed within the tick of its file system's clock may change again and look the same."""
    fill(tmp_path, "a.md")
    now = time.time_ns()
    whole = now - now % 1_000_000_000
    named = {"whole second": whole, "three whole seconds": whole - 3_000_000_000}
    mtime = named[age] if isinstance(age, str) else now - int(age * 1e9) | 1
    os.utime(tmp_path / "a.md", ns=(mtime, mtime))
    changed = state(tmp_path / "a.md").ctime_ns
    monkeypatch.setattr(time, "time_ns", lambda: changed + 1_000_000)
    assert not tree(tmp_path).read(["a.md"])[0].stable, "its status has just changed"
    if stable:
        monkeypatch.setattr(time, "time_ns", lambda: changed + 100_000_000)
        assert tree(tmp_path).read(["a.md"])[0].stable


def test_writing_new_files(tmp_path: Path) -> None:
    """Complete, with the requested time, with the mode given by the umask, in folders created for them."""
    files = [Write("b/c/1.md", b"one", OLD), Write("2.md", b""), Write("b/3.md", b"\r\n\xff", OLD)]
    umask = os.umask(0o027)
    try:
        written = tree(tmp_path).write(files)
    finally:
        os.umask(umask)
    assert [one.path for one in written] == ["b/c/1.md", "2.md", "b/3.md"]
    assert everything(tmp_path) == {file.path: file.data for file in files}
    for one in written:
        assert one.reason is None
        assert one.stat == state(tmp_path / one.path)
        assert stat.S_IMODE((tmp_path / one.path).stat().st_mode) == 0o640
    # Whether a file with the current time is stable depends on how long the others took.
    assert (written[0].stable, written[2].stable) == (True, True)
    assert written[0].stat[:2] == (3, OLD)
    assert [read.stat for read in tree(tmp_path).read([file.path for file in files])] == [one.stat for one in written]


def test_a_new_file_replaces_nothing(tmp_path: Path) -> None:
    """Existing files are kept, and the others are written."""
    fill(tmp_path, "a.md", "d.md/e.md")
    files = [Write("a.md", b"new"), Write("b.md", b"new"), Write("d.md", b"new"), Write("a.md/c.md", b"new")]
    written = tree(tmp_path).write(files)
    taken = "there is a file of that name already"
    assert [one.reason for one in written] == [
        taken,
        None,
        taken,
        "'a.md' in its path is a link or a file, not a folder",
    ]
    assert everything(tmp_path) == {"a.md": b"a.md", "b.md": b"new", "d.md/e.md": b"d.md/e.md"}


def test_replacing_a_file(tmp_path: Path) -> None:
    """The mode is kept, the inode changes: processes that read the old file are not affected."""
    fill(tmp_path, "a.md")
    path = tmp_path / "a.md"
    path.chmod(0o604)
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    before = path.stat()
    with path.open("rb") as reader:
        written = tree(tmp_path).write([Write("a.md", b"new", OLD, seen(path))])[0]
        assert reader.read() == b"a.md"
    assert written.stat == state(path)
    assert written.stat[:2] == (3, OLD)
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert everything(tmp_path) == {"a.md": b"new"}


@pytest.mark.parametrize("what", ["bytes", "size", "gone", "folder"])
def test_a_file_in_another_state(tmp_path: Path, what: str) -> None:
    """It is neither replaced, removed nor renamed, even if size and time are equal."""
    fill(tmp_path, "a.md", "b.md")
    path = tmp_path / "a.md"
    expected, times = seen(path), path.stat().st_mtime_ns
    if what in ("bytes", "size"):
        path.write_text("edit" if what == "bytes" else "edited")
        os.utime(path, ns=(times, times))
    else:
        path.unlink()
        if what == "folder":
            fill(tmp_path, "a.md/c.md")
    before = everything(tmp_path)
    reason = {"gone": "is gone", "folder": "is a folder"}.get(what, "was changed by another process")
    written = tree(tmp_path).write([Write("a.md", b"new", None, expected), Write("c.md", b"new")])
    assert [one.reason for one in written] == [reason, None]
    assert tree(tmp_path).remove("a.md", expected) == reason
    assert tree(tmp_path).rename("a.md", "new/d.md", expected) == reason
    assert everything(tmp_path) == before | {"c.md": b"new"}
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("what", ["write", "remove"])
@pytest.mark.parametrize("how", ["in place", "another file", "link", "gone"])
def test_a_file_that_changes_at_the_last_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, what: str
) -> None:
    """After the last check and before its name is replaced or removed: the changed file is kept."""
    if what == "write" and handles._renameat2() is None:
        pytest.skip("this system cannot exchange two names")
    fill(tmp_path, "a.md")
    path = tmp_path / "a.md"
    expected = seen(path)
    check, looks = Folder.check, []

    def late(folder: Folder, name: str, wanted: bytes) -> os.stat_result:
        status = check(folder, name, wanted)
        looks.append(name)
        if looks == ["a.md"] * (2 if what == "write" else 1):
            if how != "in place":
                path.unlink()
            if how == "link":
                path.symlink_to("elsewhere")
            elif how != "gone":
                path.write_text("edit")
        return status

    monkeypatch.setattr(Folder, "check", late)
    root = tree(tmp_path)
    reason = (
        root.remove("a.md", expected) if what == "remove" else root.write([Write("a.md", b"new", None, expected)])[0][2]
    )
    assert reason is not None
    assert reason.endswith({"link": "is a link", "gone": "is gone"}.get(how, "was changed by another process"))
    assert [entry.name for entry in tmp_path.iterdir()] == ([] if how == "gone" else ["a.md"])
    if how == "link":
        assert os.readlink(path) == "elsewhere"
    elif how != "gone":
        assert path.read_text() == "edit"


@pytest.mark.skipif(not handles.BY_DESCRIPTOR, reason="this system opens files by path only")
def test_a_link_takes_the_place_of_an_open_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read is in the folder that was opened, not in that of the link."""
    fill(tmp_path, "in/sub/a.md", "out/a.md")
    (tmp_path / "out/a.md").write_text("outside")
    look = Folder.read

    def late(folder: Folder, name: str, most: int) -> tuple[bytes, Stat, bool]:
        (tmp_path / "in/sub").rename(tmp_path / "moved")
        (tmp_path / "in/sub").symlink_to(tmp_path / "out")
        return look(folder, name, most)

    monkeypatch.setattr(Folder, "read", late)
    (read,) = tree(tmp_path / "in").read(["sub/a.md"])
    assert read.digest == seen(tmp_path / "moved/a.md")


def test_a_pipe_takes_the_place_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at it and its opening: it is left alone, and nobody waits for what comes out of it."""
    fill(tmp_path, "a.md")
    path = tmp_path / "a.md"
    expected = seen(path)
    look = Folder.stat

    def late(folder: Folder, name: str) -> os.stat_result:
        status = look(folder, name)
        if path.is_file():
            path.unlink()
            os.mkfifo(path)
        return status

    monkeypatch.setattr(Folder, "stat", late)
    assert tree(tmp_path).remove("a.md", expected) == "is a pipe"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.md"]


def test_a_file_and_its_name_are_both_taken_at_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is to be removed is edited, and another one gets its name: both are there afterwards."""
    fill(tmp_path, "a.md")
    path = tmp_path / "a.md"
    expected = seen(path)
    check = Folder.check

    def late(folder: Folder, name: str, wanted: bytes) -> os.stat_result:
        if name != "a.md":
            path.write_text("another")
            return check(folder, name, wanted)
        status = check(folder, name, wanted)
        path.write_text("edit")
        return status

    monkeypatch.setattr(Folder, "check", late)
    assert tree(tmp_path).remove("a.md", expected) == "was changed by another process"
    left = everything(tmp_path)
    assert left.pop("a.md") == b"another"
    ((name, data),) = left.items()
    assert data == b"edit"
    assert name.startswith("a.md.")


def test_where_names_cannot_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is replaced all the same, if it is as expected at the last check."""
    fill(tmp_path, "a.md")
    expected = seen(tmp_path / "a.md")
    monkeypatch.setattr(handles, "_renameat2", lambda: None)
    assert tree(tmp_path).write([Write("a.md", b"new", None, expected)])[0].reason is None
    assert tree(tmp_path).write([Write("a.md", b"newer", None, expected)])[0].reason == "was changed by another process"
    assert everything(tmp_path) == {"a.md": b"new"}


def test_where_folders_have_no_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are found, read, written, renamed and removed by their paths, and links in them are refused."""
    monkeypatch.setattr(handles, "BY_DESCRIPTOR", False)
    fill(tmp_path, "a/b.md", "elsewhere/c.md")
    (tmp_path / "link").symlink_to("elsewhere")
    root, expected = tree(tmp_path), seen(tmp_path / "a/b.md")
    assert found(tmp_path) == ["a/b.md", "elsewhere/c.md"]
    assert root.read(["a/b.md"])[0].data == b"a/b.md"
    written = root.write([Write("a/b.md", b"new", None, expected), Write("d/e.md", b"e"), Write("link/f.md", b"f")])
    assert [one.reason for one in written] == [None, None, "'link' in its path is a link or a file, not a folder"]
    assert root.rename("a/b.md", "g/b.md", seen(tmp_path / "a/b.md")) is None
    assert root.remove("d/e.md", seen(tmp_path / "d/e.md")) is None
    assert everything(tmp_path) == {"g/b.md": b"new", "elsewhere/c.md": b"elsewhere/c.md"}


def test_removing(tmp_path: Path) -> None:
    """With the folders that are empty afterwards, except the root."""
    fill(tmp_path, "a/b/c/d.md", "a/e.png", "f.md")
    (tmp_path / "a/empty").mkdir()
    assert tree(tmp_path).remove("a/b/c/d.md", seen(tmp_path / "a/b/c/d.md")) is None
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["e.png", "empty"]
    (tmp_path / "a/e.png").unlink()
    (tmp_path / "a/empty").rmdir()
    (tmp_path / "a").rmdir()
    assert tree(tmp_path).remove("f.md", seen(tmp_path / "f.md")) is None
    assert tmp_path.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_renaming(tmp_path: Path) -> None:
    """Into a folder created for it, out of one that is then removed; the state is kept."""
    fill(tmp_path, "a/b/c.md")
    before, bytes_ = state(tmp_path / "a/b/c.md"), seen(tmp_path / "a/b/c.md")
    assert tree(tmp_path).rename("a/b/c.md", "d/e.md", bytes_) is None
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    assert state(tmp_path / "d/e.md")._replace(ctime_ns=0) == before._replace(ctime_ns=0)
    assert (tmp_path / "d/e.md").read_text() == "a/b/c.md"
    assert (tmp_path / "d/e.md").stat().st_nlink == 1
    assert tree(tmp_path).rename("d/e.md", "d/E.md", bytes_) is None
    assert everything(tmp_path) == {"d/E.md": b"a/b/c.md"}


def test_renaming_overwrites_nothing(tmp_path: Path) -> None:
    """Neither a file nor a folder, nor another name of the same file."""
    fill(tmp_path, "a.md", "b.md", "c.md/d.md")
    os.link(tmp_path / "a.md", tmp_path / "same.md")
    before = everything(tmp_path)
    for new in ("b.md", "c.md", "same.md", "a.md"):
        assert tree(tmp_path).rename("a.md", new, seen(tmp_path / "a.md")) == "there is a file of that name already"
    assert everything(tmp_path) == before


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_renaming_where_files_have_one_name_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Without hard links, as on FAT, a file is renamed too, and overwrites nothing."""

    def refuse(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    fill(tmp_path, "a.md", "b.md")
    expected = seen(tmp_path / "a.md")
    assert tree(tmp_path).rename("a.md", "b.md", expected) == "there is a file of that name already"
    assert everything(tmp_path) == {"a.md": b"a.md", "b.md": b"b.md"}
    assert tree(tmp_path).rename("a.md", "c.md", expected) is None
    assert everything(tmp_path) == {"c.md": b"a.md", "b.md": b"b.md"}


def test_setting_aside(tmp_path: Path) -> None:
    """Under a name next to the file, another one for other bytes, the same one for the same bytes."""
    fill(tmp_path, "b/a.md")
    root = tree(tmp_path)
    assert root.set_aside("b/a.md", b"one") == "b/a.md.conflict"
    assert root.set_aside("b/a.md", b"two") == "b/a.md.1.conflict"
    assert root.set_aside("b/a.md", b"two" * 1_000) == "b/a.md.2.conflict"
    assert root.set_aside("b/a.md", b"one") == "b/a.md.conflict"
    assert root.set_aside("b/a.md", b"two" * 1_000) == "b/a.md.2.conflict"
    assert root.set_aside("gone/a.md", b"one") == "gone/a.md.conflict"
    assert everything(tmp_path) == {
        "b/a.md": b"b/a.md",
        "b/a.md.conflict": b"one",
        "b/a.md.1.conflict": b"two",
        "b/a.md.2.conflict": b"two" * 1_000,
        "gone/a.md.conflict": b"one",
    }
    assert found(tmp_path) == ["b/a.md"]


def test_setting_aside_beside_a_long_name(tmp_path: Path) -> None:
    """A name that is too long for the ending is truncated, between characters."""
    name = "ü" * 126 + ".md"
    (tmp_path / name).write_text("mine")
    first = tree(tmp_path).set_aside(name, b"one")
    second = tree(tmp_path).set_aside(name, b"two")
    assert (tmp_path / first).read_bytes() == b"one"
    assert (tmp_path / second).read_bytes() == b"two"
    assert first.endswith("ü.conflict")
    assert second.endswith("ü.1.conflict")


def test_what_cannot_be_set_aside(tmp_path: Path) -> None:
    """An error, so that the caller does not overwrite the only copy."""
    fill(tmp_path, "a.md")
    with pytest.raises(ef.DirectoryError, match=r"a\.md/b\.md"):
        tree(tmp_path).set_aside("a.md/b.md", b"one")


def test_cleaning(tmp_path: Path) -> None:
    """Only temporary files, and only those that are no longer being written."""
    left = f".ef-{'0' * 16}.tmp"
    fill(tmp_path, left, f"b/{left}", ".ef-mine.tmp", "b/a.md")
    os.utime(tmp_path / left, ns=(OLD, OLD))
    walk = tree(tmp_path).walk()
    assert sorted(walk.temporary) == [left, f"b/{left}"]
    assert sorted(tree(tmp_path, []).walk().temporary) == [left, f"b/{left}"]
    assert tree(tmp_path).clean(walk.temporary) == 0
    assert tree(tmp_path).clean([*walk.temporary, "b/a.md", ".ef-mine.tmp"], older_than=0) == 2
    assert sorted(everything(tmp_path)) == [".ef-mine.tmp", "b/a.md"]
