"""A forked child is refused at once, and does not affect its parent, not even on exit (case 49)."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

#: The calls that a child tries, with the expected error. `store` is the parent's, `frame` is an ordinary frame.
CALLS = {
    "ef.connect(url)": "ConnectError",
    "ef.connect(':memory:')": "ConnectError",
    "ef.connect(url + '.other')": "ConnectError",
    "ef.entities(frame, 't', id='id')": "ClosedError",
    "ef.ids('t', ['a'])": "ClosedError",
    "store.upsert(frame)": "ClosedError",
    "store.upsert(iter([frame]))": "ClosedError",
    "store.plan(frame)": "ClosedError",
    "plan.counts": "ClosedError",
    "plan.apply()": "ClosedError",
    "store.exists(frame)": "ClosedError",
    "store.missing(frame)": "ClosedError",
    "store.get(frame)": "ClosedError",
    "store.read('t')": "ClosedError",
    "store.scan('t')": "ClosedError",
    "store.delete(frame)": "ClosedError",
    "store.stats()": "ClosedError",
    "store.verify()": "ClosedError",
    "store.get_entity('t', 'a')": "ClosedError",
    "store.upsert_entity('t', 'a', 'x')": "ClosedError",
    "store.entity_exists('t', 'a')": "ClosedError",
    "store.delete_entity('t', 'a')": "ClosedError",
    "store.embed(ef.HashingEmbedder(16))": "ClosedError",
    "store.enqueue()": "ClosedError",
    "store.search('text', mode='text')": "ClosedError",
    "store.jobs()": "ClosedError",
    "store.spaces()": "ClosedError",
    "folder.sync()": "ClosedError",
    "folder.plan()": "ClosedError",
    "ef.DirectorySync(store, '.')": "ClosedError",
    "result.outcomes": "ClosedError",
    "result.failed": "ClosedError",
    "store.types()": "ClosedError",
    "store.count()": "ClosedError",
    "store.runs()": "ClosedError",
    "('t', 'a') in store": "ClosedError",
    "repr(store)": "None",
    "store._repr_html_()": "None",
    "store.address": "None",
    "store.close()": "None",
    "store.close() or store.close()": "None",
}

#: Forks, with os.fork or by multiprocessing, and prints the result of each call, or that it hangs.
FORK = """
import multiprocessing, os, signal, sys, warnings
import polars as pl
import entityframes as ef
warnings.simplefilter("ignore")
url = sys.argv[1]

def attempt(call):
    try:
        eval(call, globals())
    except Exception as error:
        assert "spawn" in str(error) or "connect again" in str(error), error
        return type(error).__name__
    return "None"

def work(calls):
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for call in calls:
        signal.alarm(30)
        print(call, "->", attempt(call), flush=True)
    signal.alarm(30)

def in_child(calls, how):
    sys.stdout.flush()
    if how == "multiprocessing":
        child = multiprocessing.get_context("fork").Process(target=work, args=(calls,))
        child.start()
        child.join()
        return child.exitcode
    pid = os.fork()
    if pid == 0:
        work(calls)
        if how == "unwind":
            raise SystemExit(0)
        if how == "exit":
            # A complete interpreter shutdown, with all finalizers.
            sys.exit(0)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""

AT_WORK = """
frame = pl.DataFrame({"entity_type": "t", "id": ["a", "b", "c"], "content": ["x", "y", "z"]})
store = ef.connect(url)
result = store.upsert(frame, progress=False)
plan = store.plan(frame)
os.makedirs("folder", exist_ok=True)
folder = ef.DirectorySync(store, "folder")
"""


def run(script: str, url: str, folder: Path) -> str:
    """Run a script in a separate process and return its output."""
    done = subprocess.run(
        [sys.executable, "-c", FORK + textwrap.dedent(script), url],
        capture_output=True, text=True, timeout=120, cwd=folder, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("how", ["exit", "multiprocessing"])
def test_every_call_in_a_child_is_refused_at_once(url: str, tmp_path: Path, how: str) -> None:
    """With os.fork and with multiprocessing; the parent continues as before."""
    out = run(
        f"""
        {AT_WORK.replace(chr(10), chr(10) + " " * 8)}
        print("exit", in_child({list(CALLS)!r}, {how!r}))
        print(store.upsert_entity("t", "d", "later")["status"], store.read("t").height, result.outcomes.height)
        """,
        url,
        tmp_path,
    )
    lines = out.splitlines()
    assert lines[-2:] == ["exit 0", "created 4 3"], out
    assert dict(line.split(" -> ") for line in lines[:-2]) == CALLS


@pytest.mark.slow
def test_the_end_of_a_child_does_not_affect_its_parent(url: str, tmp_path: Path) -> None:
    """Children end in all ways, during a transaction, a scan and a call of the embedder: all of these continue."""
    out = run(
        f"""
        {AT_WORK.replace(chr(10), chr(10) + " " * 8)}
        methods = ["exit", "multiprocessing", "now"]
        ended = []
        def strike(*_):
            ended.extend(in_child(["store.read('t')", "store.close()"], how) for how in methods)
        class Forking(ef.HashingEmbedder):
            def embed(self, texts):
                strike()
                return super().embed(texts)
        def frames():
            for number in range(2):
                strike()
                yield frame.with_columns(content=pl.format("{{}} {{}}", "content", pl.lit(number)))
        assert store.upsert(frames(), batch_size=3, progress=strike).counts["updated"] == 6
        assert store.embed(Forking(16), progress=False).counts["embedded"] == 3
        pieces = store._engine.select(["id"], "t", None, None)
        first = next(pieces)
        strike()
        assert first.height + sum(piece.height for piece in pieces) == 3
        assert set(ended) == {{0}}, ended
        assert store.verify().is_empty()
        store.close()
        with ef.connect(url) as store:
            print(store.read("t")["content"].to_list())
        """,
        url,
        tmp_path,
    )
    assert out.splitlines()[-1] == "['x 1', 'y 1', 'z 1']"


@pytest.mark.slow
def test_a_child_that_unwinds_leaves_the_connection(url: str, tmp_path: Path) -> None:
    """A fork in the middle of a write; the child raises an exception through the calls that it is in."""
    out = run(
        f"""
        {AT_WORK.replace(chr(10), chr(10) + " " * 8)}
        from contextlib import contextmanager
        from entityframes.interrupt import Interrupt
        engine = store._engine
        sql = "UPDATE entityframes.entities SET content = 'changed' WHERE id = 'a'"
        @contextmanager
        def changing():
            if engine.database.name == "duckdb":
                with engine.database.file.writer(Interrupt()) as cursor, engine.database.file.transaction(cursor, Interrupt()):
                    cursor.execute(sql)
                    yield
            else:
                with engine.database.session() as session, session.transaction():
                    session.connection.script(sql)
                    yield
        with changing():
            assert in_child(["store.read('t')"], "unwind") == 0
        print(store.get_entity("t", "a")["content"])
        """,
        url,
        tmp_path,
    )
    assert out.splitlines()[-1] == "changed"


@pytest.mark.slow
@pytest.mark.duckdb
@pytest.mark.parametrize("used", ["frame.sort('id')", "frame.lazy().filter(pl.col('id') == 'a').collect()",
                                  "frame.select(pl.col('id').sort())", "ef.entities(frame, 't', id='id')"])  # fmt: skip
def test_a_parent_that_only_worked_with_frames(used: str, tmp_path: Path) -> None:
    """A child lacks the threads of Polars, whatever started them; and so do its own children."""
    out = run(
        f"""
        frame = pl.DataFrame({{"id": ["a", "b"], "n": [1, 2]}})
        {used}
        calls = ["ef.connect(url)", "ef.entities(frame, 't', id='id')", "ef.ids('t', ['a'])"]
        print("exit", in_child(calls, "exit"))
        def nested(calls):
            print("exit", in_child(calls, "exit"))
        if os.fork() == 0:
            nested(calls)
            os._exit(0)
        os.wait()
        """,
        str(tmp_path / "store.duckdb"),
        tmp_path,
    )
    refused = [
        "ef.connect(url) -> ConnectError", "ef.entities(frame, 't', id='id') -> ClosedError",
        "ef.ids('t', ['a']) -> ClosedError", "exit 0",
    ]  # fmt: skip
    assert out.splitlines() == refused * 2


@pytest.mark.slow
@pytest.mark.parametrize("how", ["exit", "multiprocessing"])
def test_a_fork_before_anything_was_used(url: str, tmp_path: Path, how: str) -> None:
    """As in servers that load the application before forking: the children work, and so does the parent afterwards."""
    out = run(
        f"""
        def serve():
            with ef.connect(url) as store:
                frame = ef.entities(pl.DataFrame({{"id": ["a", "b"], "c": ["x", "y"]}}), "t", id="id", content="c")
                store.upsert(frame, progress=False)
                assert store.scan("t").filter(pl.col("id") == "a").collect().height == 1
                assert store.read("t").height == 2
        print("exit", in_child(["serve()"], {how!r}))
        print("exit", in_child(["serve()"], {how!r}))
        serve()
        print("parent")
        """,
        url,
        tmp_path,
    )
    assert out.splitlines() == ["serve() -> None", "exit 0"] * 2 + ["parent"]


@pytest.mark.slow
@pytest.mark.duckdb
def test_without_information_at_the_fork_the_threads_are_tested(tmp_path: Path) -> None:
    """A system that does not name the threads of a process, or one whose threads have no name yet."""
    out = run(
        """
        from entityframes import forks
        forks._running = lambda: None
        calls = ["ef.ids('t', ['a'])", "ef.connect(':memory:').close()"]
        print("exit", in_child(calls, "exit"))
        pl.DataFrame({"n": [2, 1]}).sort("n")
        print("exit", in_child(calls, "exit"))
        """,
        "",
        tmp_path,
    )
    works = ["ef.ids('t', ['a']) -> None", "ef.connect(':memory:').close() -> None", "exit 0"]
    refused = ["ef.ids('t', ['a']) -> ClosedError", "ef.connect(':memory:').close() -> ConnectError", "exit 0"]
    assert out.splitlines() == works + refused


@pytest.mark.slow
@pytest.mark.duckdb
def test_a_child_that_imports_the_package_only_after_its_parent_used_polars(tmp_path: Path) -> None:
    """In that case nothing was recorded at the fork, and the child tests whether the threads respond."""
    script = """
        import os, sys
        import polars as pl
        if sys.argv[1] == "used":
            pl.DataFrame({"a": [2, 1]}).sort("a")
        if os.fork() == 0:
            import entityframes as ef
            try:
                with ef.connect(":memory:") as store:
                    print(store.upsert_entity("t", "a")["status"])
            except ef.ConnectError as error:
                print("refused" if "spawn" in str(error) else error)
            sys.exit(0)
        assert os.wait()[1] == 0
    """
    for used, expected in (("used", "refused"), ("unused", "created")):
        words = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), used]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)
        assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr
