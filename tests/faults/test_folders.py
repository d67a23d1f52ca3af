"""Folders with links, pipes and unexpected names, changed or unreadable at any moment, and full disks."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import entityframes as ef
from entityframes.directory.handles import Folder, Stat
from entityframes.directory.tree import Tree, Write
from tests.faults.servers import Background, tmpfs

#: How often a writing process is killed.
KILLS = int(os.environ.get("ENTITYFRAMES_KILLS", "3"))


def tree(root: Path) -> Tree:
    return Tree(root, (".md",), None, 5 << 20)


def state(path: Path) -> Stat:
    return Stat.of(path.lstat())


def seen(path: Path) -> bytes:
    """The expected digest of a file: the hash of its bytes."""
    return hashlib.sha256(path.read_bytes() if path.is_file() else b"").digest()


def refused(root: Path) -> dict[str, str]:
    return dict(tree(root).walk().refused.rows())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a file, next to a secret."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.md").write_text("secret")
    (tmp_path / "root" / "b").mkdir(parents=True)
    (tmp_path / "root" / "b" / "a.md").write_text("mine")
    return tmp_path / "root"


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that another user can reach, too."""
    folder = Path(tempfile.mkdtemp(prefix="ef-public-"))
    folder.chmod(0o755)
    yield folder
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder)


def as_other_user(script: str, *arguments: str | Path) -> str:
    """Run a script as a user without special permissions."""
    start = """
        import hashlib, json, os, sys
        from entityframes.directory.tree import Tree, Write
        tree = Tree(sys.argv[1], (".md",), None, 5 << 20)
        tree.walk()  # What is imported late, is imported now.
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(start) + textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_links_are_not_followed(root: Path) -> None:
    """Out of the folder, within it, in a cycle, or dangling: reported if it may be meant as a file, and never read."""
    links = {
        "out.md": "../outside/secret.md",
        "absolute.md": "/etc/passwd",
        "in.md": "b/a.md",
        "folder": "../outside",
        "up": "..",
        "here": ".",
        "loop.md": "loop.md",
        "nothing.md": "nowhere",
        "loop": "loop",
        "nothing": "nowhere",
        "picture.png": "b/a.md",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    walk = tree(root).walk()
    assert walk.files["path"].to_list() == ["b/a.md"]
    assert walk.refused.is_empty()
    others = ("out.md", "absolute.md", "in.md", "loop.md", "nothing.md", "loop", "nothing", "picture.png")
    assert dict(walk.left_out.select("path", "reason").rows()) == {
        **dict.fromkeys(others, "it is a link"),
        **dict.fromkeys(("folder", "up", "here"), "it is a link to a folder"),
    }
    assert sorted(walk.links) == ["folder", "here", "up"]
    for name in links:
        assert tree(root).read([name])[0].reason == "is a link"
        assert tree(root).read([f"{name}/secret.md"])[0].data is None
        assert tree(root).write([Write(f"{name}/new.md", b"new")])[0].reason is not None
        expected = seen(root / name)
        assert tree(root).write([Write(name, b"new", None, expected)])[0].reason == "is a link"
        assert tree(root).remove(name, expected) == "is a link"
        assert tree(root).rename(name, "new.md", expected) == "is a link"
        assert tree(root).rename("b/a.md", f"{name}/new.md", seen(root / "b/a.md")) is not None
    assert {name: os.readlink(root / name) for name in links} == links
    assert [path.name for path in (root.parent / "outside").iterdir()] == ["secret.md"]


def test_pipes_sockets_and_devices(root: Path) -> None:
    """No call blocks on a pipe, and none is opened for writing."""
    os.mkfifo(root / "pipe.md")
    os.mkfifo(root / "pipe.png")
    expected = {"pipe.md": "is a pipe", "socket.md": "is a socket"}
    with socket.socket(socket.AF_UNIX) as unix:
        before = Path.cwd()
        os.chdir(root)  # The path of a socket must be short.
        unix.bind("socket.md")
        os.chdir(before)
        if os.geteuid() == 0:
            os.mknod(root / "device.md", 0o020600, os.makedev(1, 3))
            expected["device.md"] = "is a device"
        assert refused(root) == expected
        # Opening a pipe for reading blocks until there is a writer.
        for read in Background(lambda: tree(root).read(list(expected))).outcome():
            assert read.data is None
            assert read.reason
        for name in expected:
            files = [Write(name, b"new", None, b"")]
            assert Background(lambda files=files: tree(root).write(files)).outcome()[0].reason == expected[name]


def test_a_file_becomes_a_link_between_walk_and_read(root: Path) -> None:
    """The target of the link is not read."""
    assert tree(root).walk().files["path"].to_list() == ["b/a.md"]
    (root / "b" / "a.md").unlink()
    (root / "b" / "a.md").symlink_to(root.parent / "outside" / "secret.md")
    read = tree(root).read(["b/a.md"])[0]
    assert (read.data, read.reason, read.gone) == (None, "is a link", False)


def test_a_folder_becomes_a_link_during_the_walk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its name was read and before it is opened: the target of the link is not read."""
    (root.parent / "outside" / "a.md").write_text("mine")
    opened = Folder.open

    def late(path: str, **options: bool) -> Folder:
        if path.endswith("/b") and not (root / "b").is_symlink():
            shutil.rmtree(root / "b")
            (root / "b").symlink_to(root.parent / "outside")
        return opened(path, **options)

    monkeypatch.setattr(Folder, "open", late)
    walk = tree(root).walk()
    assert walk.files.is_empty()
    assert walk.unreadable == ["b"]


def test_a_folder_becomes_a_link_between_walk_and_write(root: Path) -> None:
    """Nothing is read, written, renamed or removed in the target of the link."""
    assert tree(root).walk().files["path"].to_list() == ["b/a.md"]
    outside = root.parent / "outside"
    (outside / "a.md").write_text("mine")
    os.utime(outside / "a.md", ns=(0, 0))
    shutil.rmtree(root / "b")
    (root / "b").symlink_to(outside)
    expected = seen(outside / "a.md")
    reason = "'b' in its path is a link or a file, not a folder"
    read = tree(root).read(["b/a.md"])[0]
    assert (read.data, read.reason, read.gone) == (None, reason, False)
    written = tree(root).write([Write("b/a.md", b"new", None, expected), Write("b/c.md", b"new"), Write("d.md", b"")])
    assert [one.reason for one in written] == [reason, reason, None]
    assert tree(root).remove("b/a.md", expected) == reason
    assert tree(root).rename("b/a.md", "e.md", expected) == reason
    assert tree(root).rename("d.md", "b/d.md", seen(root / "d.md")) == reason
    with pytest.raises(ef.DirectoryError, match="link"):
        tree(root).set_aside("b/a.md", b"loser")
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"a.md": "mine", "secret.md": "secret"}


def test_files_are_swapped_while_they_are_read(root: Path) -> None:
    """A file and a folder that turn into links and back all the time: the secret is never read or overwritten."""
    secret = root.parent / "outside" / "secret.md"
    (root.parent / "outside" / "a.md").symlink_to("secret.md")
    script = textwrap.dedent(
        """
        import os, sys
        root, outside = sys.argv[1:]
        os.chdir(root)
        os.symlink(outside, "link")
        while True:
            # A write that checked c.md before the swap has replaced the link.
            if not os.path.islink("link.md"):
                os.symlink(outside + "/secret.md", "new"); os.replace("new", "link.md")
            for real, link in (("b", "link"), ("c.md", "link.md")):
                os.rename(real, "kept"); os.rename(link, real); os.rename(real, link); os.rename("kept", real)
        """
    )
    (root / "c.md").write_text("mine")
    answers = set()
    with subprocess.Popen([sys.executable, "-c", script, root, secret.parent]) as swapping:
        try:
            # A hundred rounds, and more until each case has occurred.
            rounds, hangs = 0, time.monotonic() + 300
            met = {b"mine", "is a link", "is gone"}
            while rounds < 100 or (not met <= answers and time.monotonic() < hangs):
                rounds += 1
                for read in tree(root).read(["b/a.md", "c.md"] * 20):
                    answers.add(read.data if read.data is not None else read.reason)
                walk = tree(root).walk()
                for path in {"b/a.md", "c.md"} & set(walk.files["path"]):
                    tree(root).write([Write(path, b"mine", None, hashlib.sha256(b"mine").digest())])
        finally:
            swapping.kill()
    assert secret.read_text() == "secret"
    assert met <= answers
    assert answers <= {b"mine", "is a link", "is gone", "'b' in its path is a link or a file, not a folder"}


def test_unreadable_folders_and_files(public: Path) -> None:
    """They are reported and not considered missing; the others are read."""
    for path in ("closed/a.md", "no_names/a.md", "no_entry/a.md", "open/a.md", "open/b.md"):
        (public / path).parent.mkdir(exist_ok=True)
        (public / path).write_text(path)
    (public / "closed").chmod(0o000)
    (public / "no_names").chmod(0o311)
    (public / "no_entry").chmod(0o744 if os.geteuid() == 0 else 0o444)
    (public / "open/a.md").chmod(0o000)
    script = """
        walk = tree.walk()
        reads = tree.read(["closed/a.md", "no_entry/a.md", "no_names/a.md", "open/a.md", "open/b.md"])
        print(json.dumps([
            sorted(walk.files["path"]), sorted(walk.refused.rows()), sorted(walk.unreadable),
            [[read.path, read.reason, read.gone] for read in reads],
        ]))
    """
    denied = "permission denied"
    assert as_other_user(script, public) == (
        '[["open/a.md", "open/b.md"], '
        f'[["closed", "{denied}"], ["no_entry", "its .efignore cannot be read: {denied}"], ["no_names", "{denied}"]], '
        '["closed", "no_entry", "no_names"], '
        f'[["closed/a.md", "{denied}", false], ["no_entry/a.md", "{denied}", false], ["no_names/a.md", "{denied}", false], '
        f'["open/a.md", "{denied}", false], ["open/b.md", null, false]]]\n'
    )


def test_an_unreadable_root(public: Path) -> None:
    """An error, never an empty folder."""
    (public / "root").mkdir()
    (public / "root").chmod(0o711)
    (public / "root" / "a.md").touch()
    script = """
        from entityframes import DirectoryError
        try:
            tree.walk()
        except DirectoryError as error:
            print(error)
    """
    assert as_other_user(script, public / "root") == f"the folder {public}/root cannot be opened: permission denied\n"


def test_a_folder_that_may_not_be_written(public: Path) -> None:
    """Its files are reported as failed, without temporary files left behind; the other folders are written."""
    (public / "open").mkdir()
    (public / "open").chmod(0o777)
    (public / "closed").mkdir()
    (public / "closed" / "a.md").write_text("mine")
    script = """
        old = hashlib.sha256(b"mine").digest()
        files = [Write("closed/b.md", b""), Write("closed/a.md", b"", None, old), Write("open/c.md", b"new")]
        answers = [one.reason for one in tree.write([*files, Write("new/d.md", b"")])]
        print(json.dumps([*answers, tree.remove("closed/a.md", old), tree.rename("closed/a.md", "open/a.md", old)]))
    """
    public.chmod(0o555)
    (public / "closed").chmod(0o555)
    denied = '"permission denied"'
    assert as_other_user(script, public) == f"[{denied}, {denied}, null, {denied}, {denied}, {denied}]\n"
    files = {str(path.relative_to(public)): path.read_bytes() for path in public.rglob("*") if path.is_file()}
    assert files == {"closed/a.md": b"mine", "open/c.md": b"new"}


def test_a_rename_where_hard_links_are_not_allowed(public: Path) -> None:
    """A file of another user may be renamed but not hard-linked: it is renamed, without overwriting another file."""
    public.chmod(0o777)
    (public / "a.md").write_text("of another user")
    (public / "b.md").write_text("mine")
    script = """
        linked = True
        try:
            os.link(sys.argv[1] + "/a.md", sys.argv[1] + "/link")
        except PermissionError:
            linked = False
        old = hashlib.sha256(b"of another user").digest()
        print(linked, tree.rename("a.md", "b.md", old), tree.rename("a.md", "c.md", old), sep=", ")
    """
    output = as_other_user(script, public)
    if output.startswith("True"):
        pytest.skip("this system does not protect hard links, or the tests' user owns the file")
    assert output == "False, there is a file of that name already, None\n"
    assert {path.name: path.read_text() for path in public.iterdir()} == {"b.md": "mine", "c.md": "of another user"}


def test_too_many_open_files(root: Path) -> None:
    """Files that cannot be opened for that reason are not considered missing, nor their folders empty."""
    script = textwrap.dedent(
        """
        import os, resource, sys
        import entityframes as ef
        from entityframes.directory.tree import Tree
        tree = Tree(sys.argv[1], (".md",), None, 5 << 20)
        tree.walk()
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        taken = []
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
        for free in range(5):
            try:
                walk = tree.walk()
                print(free, walk.files["path"].to_list(), walk.unreadable)
            except ef.DirectoryError as error:
                print(free, str(error).rpartition(": ")[2])
            try:
                read = tree.read(["b/a.md"])[0]
                print(free, read.data or read.reason, read.gone)
            except ef.DirectoryError as error:
                print(free, str(error).rpartition(": ")[2])
            os.close(taken.pop())
        """
    )
    run = subprocess.run([sys.executable, "-c", script, root], capture_output=True, text=True, timeout=120)
    lines = run.stdout.splitlines()
    assert lines[0] == "0 too many open files", run.stdout + run.stderr
    assert "too many open files False" in run.stdout
    assert lines[-2:] == ["4 ['b/a.md'] []", "4 b'mine' False"]
    for line in lines:
        expected = "b/a.md" in line or "['b']" in line or line.endswith(("too many open files", " False"))
        assert expected, run.stdout


def test_a_folder_becomes_a_file_between_walk_and_read(root: Path) -> None:
    """The read does not report its files as deleted; the next walk does."""
    shutil.rmtree(root / "b")
    (root / "b").write_text("a file now")
    read = tree(root).read(["b/a.md"])[0]
    assert (read.data, read.gone) == (None, False)
    assert tree(root).walk().files.is_empty()


def test_names_that_are_not_utf8(root: Path) -> None:
    """Reported with the bytes escaped; the other files are found."""
    raw = os.fsencode(root)
    try:
        with open(raw + b"/b/\xff\xfe.md", "wb"):
            pass
    except OSError:
        pytest.skip("this file system does not allow such names")
    os.mkdir(raw + b"/caf\xe9")
    with open(raw + b"/caf\xe9/a.md", "wb"):
        pass
    (root / "b" / "ü\n.md").touch()
    walk = tree(root).walk()
    assert sorted(walk.files["path"]) == ["b/a.md", "b/ü\n.md"]
    assert dict(walk.refused.rows()) == {
        "b/\\xff\\xfe.md": "its name is not UTF-8",
        "caf\\xe9": "its name is not UTF-8",
    }
    assert walk.unreadable == ["caf\\xe9"]


def test_a_file_grows_while_it_is_read(root: Path) -> None:
    """The bytes of one state, or the reason; and a state that is reported as stable never has other bytes."""
    script = textwrap.dedent(
        """
        import os, sys, time
        fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
        while True:
            for _ in range(1_000):
                os.write(fd, b"0123456789")
            time.sleep(0.01)
            os.truncate(sys.argv[1], 4)
        """
    )
    answers = []
    with subprocess.Popen([sys.executable, "-c", script, root / "b" / "a.md"]) as growing:
        try:
            while state(root / "b" / "a.md").size == 4:
                time.sleep(0.01)
            deadline = time.monotonic() + 300
            while time.monotonic() < deadline and "changes while it is read" not in {read.reason for read in answers}:
                answers += tree(root).read(["b/a.md"] * 50)
        finally:
            growing.kill()
    assert "changes while it is read" in {read.reason for read in answers}
    stable = {read.stat: read.digest for read in answers if read.stable}
    for read in answers:
        if read.data is not None:
            assert stable.get(read.stat, read.digest) == read.digest
            assert len(read.data) == read.stat.size
            assert read.data.startswith(b"mine")
            assert read.digest == hashlib.sha256(read.data).digest()


def test_a_file_changes_between_walk_and_write(root: Path) -> None:
    """An editor was faster: its text stays."""
    files = {path: seen(root / path) for path in tree(root).walk().files["path"]}
    (root / "b" / "a.md").write_text("edited")
    written = tree(root).write([Write("b/a.md", b"new", None, files["b/a.md"])])[0]
    assert written.reason == "was changed by another process"
    assert tree(root).remove("b/a.md", files["b/a.md"]) == "was changed by another process"
    assert (root / "b" / "a.md").read_text() == "edited"


def test_a_file_changes_while_it_is_written(root: Path) -> None:
    """The file is checked once more after the new bytes are on disk, just before it is replaced."""
    path = root / "b" / "a.md"
    edited = threading.Event()

    def edit() -> None:
        while not any(name.startswith(".ef-") for name in os.listdir(path.parent)):
            pass
        path.write_text("edited")
        edited.set()

    editing = threading.Thread(target=edit)
    editing.start()
    written = tree(root).write([Write("b/a.md", b"x" * 100_000_000, None, seen(path))])[0]
    editing.join()
    assert edited.is_set()
    assert written.reason == "was changed by another process"
    assert [(one.name, one.read_text()) for one in path.parent.iterdir()] == [("a.md", "edited")]


def test_a_full_disk() -> None:
    """A file that does not fit stays as it was, with the reason; the others are written, without leftovers."""
    with tmpfs("1m") as disk:
        if disk is None:
            pytest.skip("mounting a file system needs privileges")
        small = [Write(f"s/{number}.md", b"x" * 4_000) for number in range(20)]
        assert all(one.stat for one in tree(disk).write(small))
        replaced, before = seen(disk / "s/0.md"), state(disk / "s/0.md")
        files = [
            Write("s/0.md", b"y" * 2_000_000, None, replaced),
            Write("large.md", b"y" * 2_000_000),
            Write("s/1.md", b"small", None, seen(disk / "s/1.md")),
            Write("t/new.md", b"small"),
        ]
        full = "no space left on device"
        assert [one.reason for one in tree(disk).write(files)] == [full, full, None, None]
        with pytest.raises(ef.DirectoryError, match=full):
            tree(disk).set_aside("s/0.md", b"z" * 2_000_000)
        walk = tree(disk).walk()
        assert walk.temporary == []
        assert sorted(walk.files["path"]) == sorted([*(file.path for file in small), "t/new.md"])
        assert (disk / "s/0.md").read_bytes() == b"x" * 4_000
        assert state(disk / "s/0.md") == before
        assert (disk / "s/1.md").read_bytes() == b"small"
        subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
        assert [one.reason for one in tree(disk).write(files[:2])] == [None, None]


def test_a_limit_on_the_size_of_files(root: Path) -> None:
    """The same without mounting a file system."""
    script = textwrap.dedent(
        """
        import hashlib, os, resource, signal, sys
        from entityframes.directory.tree import Tree, Write
        tree = Tree(sys.argv[1], (".md",), None, 5 << 20)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        old = hashlib.sha256(b"mine").digest()
        files = [Write("b/a.md", b"x" * 20_000, None, old), Write("b/b.md", b"x" * 20_000), Write("b/c.md", b"x")]
        print([one.reason for one in tree.write(files)])
        """
    )
    run = subprocess.run([sys.executable, "-c", script, root], capture_output=True, text=True, timeout=120)
    assert run.stdout == "['file too large', 'file too large', None]\n", run.stdout + run.stderr
    assert {path.name: path.read_bytes() for path in (root / "b").iterdir()} == {"a.md": b"mine", "c.md": b"x"}
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.mark.slow
def test_a_process_that_writes_is_killed(tmp_path: Path) -> None:
    """Every file is one of the written versions, complete, and leftovers are found and removed."""
    script = textwrap.dedent(
        """
        import hashlib, os, sys
        from entityframes.directory.tree import Tree, Write
        tree = Tree(sys.argv[1], (".md",), None, 5 << 20)
        started = False
        while True:
            states = {read.path: read.digest for read in tree.read(tree.walk().files["path"].to_list())}
            files = []
            for number in range(10):
                path, body = f"b{number % 3}/{number}.md", os.urandom(100_000)
                files.append(Write(path, hashlib.sha256(body).digest() + body, 10**18 + number, states.get(path)))
            new = f"new/{os.urandom(8).hex()}.md"
            files.append(Write(new, hashlib.sha256(b"new").digest() + b"new"))
            assert not [one for one in tree.write(files) if one.reason]
            if not started:
                started = True
                print("started", flush=True)
            if os.urandom(1)[0] < 128:
                assert tree.rename(new, "renamed" + new, tree.read([new])[0].digest) is None
        """
    )
    rng = random.Random(KILLS)
    root, left_over, files = tree(tmp_path), 0, set()
    for kill in range(KILLS):
        with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE) as writing:
            assert writing.stdout is not None
            assert writing.stdout.readline() == b"started\n"
            time.sleep(rng.uniform(0, 0.3))
            assert writing.poll() is None
            writing.send_signal(signal.SIGKILL)
        walk = root.walk()
        assert walk.refused.is_empty()
        reads = root.read(walk.files["path"].to_list())
        for read in reads:
            assert read.data is not None, read
            assert read.data[:32] == hashlib.sha256(read.data[32:]).digest(), f"{read.path} is torn"
        # Existing files still exist, under the old name or the new one.
        paths = {read.path.removeprefix("renamed") for read in reads}
        assert files <= paths, kill
        files = paths
        left_over += len(walk.temporary)
        assert root.clean(walk.temporary, older_than=0) == len(walk.temporary)
        assert root.walk().temporary == []
    assert files
    assert left_over or KILLS < 50, "no process was killed during a write"


def test_two_threads_write_at_once(root: Path) -> None:
    """One thread creates a file, the other gets an error; all files are complete, and the common folders exist."""
    written: list[list[str | None]] = []
    start = threading.Barrier(4)

    def work(number: int) -> None:
        files = [Write(f"deep/{n % 7}/{n}.md", str(number).encode() * 10_000) for n in range(60)]
        start.wait()
        written.append([one.reason for one in tree(root).write(files)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answers in zip(*written, strict=True):
        assert sorted(answers, key=str) == [None, *["there is a file of that name already"] * 3]
    walk = tree(root).walk()
    assert walk.temporary == []
    reads = tree(root).read([path for path in walk.files["path"] if path.startswith("deep/")])
    assert len(reads) == 60
    assert all(read.data is not None and len(read.data) == 10_000 and len(set(read.data)) == 1 for read in reads)


def test_two_threads_replace_the_same_file(root: Path) -> None:
    """Whatever the order, the file is one of the two versions, complete."""
    start = threading.Barrier(2)
    refusals: list[str | None] = []

    def work(number: int) -> None:
        start.wait()
        for _ in range(50):
            now = tree(root).read(["b/a.md"])[0]
            assert now.stat is not None, now.reason
            refusals.append(tree(root).write([Write("b/a.md", bytes([number]) * 50_000, None, now.digest)])[0].reason)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refusals) == 100
    assert set(refusals) <= {None, "was changed by another process"}
    data = (root / "b" / "a.md").read_bytes()
    assert len(data) == 50_000
    assert len(set(data)) == 1
    assert tree(root).walk().temporary == []
