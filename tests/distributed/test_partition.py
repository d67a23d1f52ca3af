"""One partition of a run: what it returns, what it raises, and its counts after a process was killed in the middle."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

import entityframes as ef
from entityframes import distributed
from entityframes.distributed import Entities, Rows, upsert_partition
from entityframes.distributed.sources import partitions

RUN = str(uuid.UUID(int=7))


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """No connection of a test stays open."""
    yield
    distributed.close()


def notes(numbers: range, text: str = "text") -> pl.DataFrame:
    return pl.DataFrame({"n": list(numbers)}).select(
        entity_type=pl.lit("note"), id=pl.format("n{}", "n"), content=pl.format("{} {}", pl.lit(text), "n")
    )


def counts(table: Any) -> dict[str, int]:
    """The number of rows by status."""
    lines = pl.from_arrow(table).drop_nulls("rows")
    return dict(lines.group_by("status").agg(pl.col("rows").sum()).sort("status").iter_rows())


def facts(table: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(table.schema.metadata[b"entityframes"])
    return found


def test_counts_and_unresolved_rows(url: str, tmp_path: Path) -> None:
    """A line for each row that is not stored, and one for all rows of each other status."""
    frame = pl.concat([notes(range(3)), pl.DataFrame({"entity_type": ["note"], "id": [None], "content": ["x"]})])
    frame.write_parquet(tmp_path / "part.parquet")
    table = upsert_partition(str(tmp_path / "part.parquet"), url, run_id=RUN, partition="p")
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("partition", "large_string"), ("row", "uint32"), ("entity_type", "large_string"), ("id", "large_string"),
        ("status", "large_string"), ("rows", "int64"), ("batch_id", "large_string"), ("error_kind", "large_string"),
        ("rule", "large_string"), ("error", "large_string"), ("sqlstate", "large_string"),
    ]  # fmt: skip
    found = pl.from_arrow(table).select("partition", "row", "id", "status", "rows", "rule", "error").rows()
    assert found == [
        ("p", 3, None, "failed", 1, "null_key", "id is null"),
        ("p", None, None, "created", 3, None, None),
    ]
    assert {name: facts(table)[name] for name in ("run_id", "partition", "batches", "resumed")} == {
        "run_id": RUN, "partition": "p", "batches": 1, "resumed": 0,
    }  # fmt: skip
    distributed.close()
    with ef.connect(url) as store:
        assert store.read("note")["content"].sort().to_list() == ["text 0", "text 1", "text 2"]
        assert store.runs()["run_id"].to_list() == [RUN]
        assert store.verify().is_empty()


def test_all_outcomes(url: str) -> None:
    """With outcomes="all" each row has a line, in input order."""
    frame = pl.concat([notes(range(2)), notes(range(1), "other")])
    table = upsert_partition(frame, url, run_id=RUN, partition="p", outcomes="all")
    assert pl.from_arrow(table).select("row", "id", "status", "rows").rows() == [
        (0, "n0", "duplicate", 1), (1, "n1", "created", 1), (2, "n0", "created", 1),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["frame", "arrow", "lazy", "function", "path", "ipc"])
def test_sources(url: str, tmp_path: Path, kind: str) -> None:
    """A file, a frame, a stream, or a function that returns one; `transform` makes an entity frame of each."""
    frame = pl.DataFrame({"key": [1, 2], "text": ["a", "b"]})
    frame.write_parquet(tmp_path / "rows [1].parquet")
    frame.write_ipc(tmp_path / "rows.arrow")
    source: Any = {
        "frame": frame,
        "arrow": frame.to_arrow(),
        "lazy": frame.lazy(),
        "function": lambda: frame.lazy(),
        "path": tmp_path / "rows [1].parquet",
        "ipc": str(tmp_path / "rows.arrow"),
    }[kind]
    table = upsert_partition(
        source, lambda: url, run_id=RUN, partition="p",
        transform=lambda rows: ef.entities(rows, "note", id="key", content="text"),
    )  # fmt: skip
    assert counts(table) == {"created": 2}


def test_what_cannot_be_read_is_an_outcome(url: str, tmp_path: Path) -> None:
    """The last line has the reason; what was written before it is counted."""

    def reason(source: Any, **options: Any) -> tuple[str, str | None]:
        table = pl.from_arrow(upsert_partition(source, url, run_id=RUN, partition="p", **options))
        [line] = table.filter(pl.col("rows").is_null()).iter_rows(named=True)
        assert (line["status"], line["row"]) == ("failed", None)
        return line["rule"], line["error"]

    (tmp_path / "text.parquet").write_text("no Parquet")
    assert reason(tmp_path / "none.parquet")[0] == "source"
    assert reason(tmp_path / "text.parquet")[0] == "source"
    assert reason(notes(range(1)).drop("id"))[0] == "schema"
    assert reason(notes(range(1)), transform=lambda rows: rows.select(pl.col("no such column")))[0] == "source"
    assert reason(pl.concat([notes(range(1))] * 2), target=Entities(on_duplicate="error"))[0] == "duplicate_key"
    assert reason(notes(range(1)), target=Rows(table="nowhere"))[0] == "schema"
    rule, error = reason(tmp_path / "rows.csv")
    assert (rule, "pass a function that reads it" in str(error)) == ("source", True)

    def broken() -> Iterator[pl.DataFrame]:
        yield notes(range(4))
        raise OSError("the disk is gone")

    table = upsert_partition(broken, url, run_id=RUN, partition="p", target=Entities(batch_size=2))
    assert counts(table) == {"created": 4}
    last = pl.from_arrow(table).row(-1, named=True)
    assert last["error"].startswith("OSError: the disk is gone. Reading stopped after 4 rows")


def test_arguments_are_checked(url: str) -> None:
    """Mistakes of the caller are errors, and so is a database that cannot be opened."""
    with pytest.raises(ValueError, match="UUID"):
        upsert_partition(notes(range(1)), url, run_id="monday", partition="p")
    with pytest.raises(ValueError, match="outcomes must be"):
        upsert_partition(notes(range(1)), url, run_id=RUN, partition="p", outcomes="some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="absent must be"):
        Entities(absent="drop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="on_match must be 'update' or 'skip'"):
        Rows(table="t", on_match="fail")  # type: ignore[arg-type]
    with pytest.raises(ef.ConnectError):
        upsert_partition(notes(range(1)), "postgresql://nobody@127.0.0.1:1/none", run_id=RUN, partition="p")


def test_a_table_of_the_user(url: str) -> None:
    """Outcomes have the columns of the key, of which one may be called like a column of the outcomes."""
    frame = pl.DataFrame({"partition": [1, 2, None], "name": ["Ada", "Bob", "?"]})
    ef.create_table(url, "people", frame, key="partition").close()
    target = Rows(table="people", key="partition")
    table = upsert_partition(frame, url, target=target, run_id=RUN, partition="p", outcomes="all")
    lines = pl.from_arrow(table).select("partition", "key.partition", "status", "rule").rows()
    assert lines == [("p", 1, "created", None), ("p", 2, "created", None), ("p", None, "failed", "null_key")]
    again = upsert_partition(frame, url, target=target, run_id=RUN, partition="p")
    assert counts(again) == {"failed": 1, "unchanged": 2}
    assert facts(again)["resumed"] == 0


def test_another_attempt_has_the_same_counts(url: str) -> None:
    """What an earlier attempt of a partition wrote counts as what it became then; of other partitions it does not."""
    with ef.connect(url) as store:
        store.upsert(notes(range(40)))
    frame = pl.concat([notes(range(20)), notes(range(20, 60), "new"), notes(range(0, -1, -1))])
    expected = {"created": 20, "unchanged": 21, "updated": 20}

    def write(rows: pl.DataFrame, partition: str = "a", run_id: str = RUN) -> Any:
        return upsert_partition(rows.lazy(), url, run_id=run_id, partition=partition, target=Entities(batch_size=7))

    half = write(frame[:33])
    assert counts(half) == {"unchanged": 20, "updated": 13}
    whole = write(frame)
    assert counts(whole) == expected
    assert facts(whole)["resumed"] > 0
    assert counts(write(frame)) == expected
    assert counts(write(frame, partition="b")) == {"unchanged": 61}
    assert counts(write(frame, run_id=str(uuid.UUID(int=8)))) == {"unchanged": 61}
    distributed.close()
    with ef.connect(url) as store:
        assert store.verify().is_empty()


def test_a_store_that_is_not_empty_after_all(url: str) -> None:
    """With `initial` rows are copied first; if some are stored, the outcomes are those of any other call."""
    both = pl.concat([notes(range(4_000)), notes(range(4_000, 5_000), "new")])
    with ef.connect(url) as store:
        store.upsert(notes(range(4_500)).with_columns(metadata=pl.struct(year=pl.lit(1950))))
    table = upsert_partition(both, url, run_id=RUN, partition="p", initial=True)
    assert counts(table) == {"created": 500, "unchanged": 4_000, "updated": 500}
    distributed.close()
    with ef.connect(url) as store:
        assert store.read("note")["year"].null_count() == 500
        assert store.verify().is_empty()


def test_a_key_that_is_there_twice_was_created_once(url: str) -> None:
    """Of equal rows of a stream the first one is credited with what an earlier attempt wrote."""
    twice = pl.concat([notes(range(5)), notes(range(5))])
    write = lambda: upsert_partition(  # noqa: E731
        twice.lazy(), url, run_id=RUN, partition="a", target=Entities(batch_size=5), outcomes="all"
    )
    first, second = write(), write()
    assert counts(first) == counts(second) == {"created": 5, "unchanged": 5}
    assert pl.from_arrow(second)["status"].to_list() == ["created"] * 5 + ["unchanged"] * 5
    assert pl.from_arrow(second)["batch_id"][:5].to_list() == pl.from_arrow(first)["batch_id"][:5].to_list()


def test_the_connections_are_shared(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The partitions of a process open the store once."""
    opened: list[Any] = []
    original = Entities._open
    monkeypatch.setattr(Entities, "_open", lambda self, location: opened.append(1) or original(self, location))
    for number in range(3):
        upsert_partition(notes(range(number)), url, run_id=RUN, partition=str(number))
    assert len(opened) == 1
    distributed.close()
    upsert_partition(notes(range(1)), url, run_id=RUN, partition="0")
    assert len(opened) == 2


def test_the_address_from_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an address, that of the process is used."""
    monkeypatch.setenv("ENTITYFRAMES_URL", url)
    assert counts(upsert_partition(notes(range(2)), run_id=RUN, partition="p")) == {"created": 2}


def test_combine(url: str) -> None:
    """The outcomes of partitions put together, also without the metadata of their schemas."""
    bad = pl.DataFrame({"entity_type": ["note"], "id": [None], "content": ["x"]}, schema=notes(range(0)).schema)
    tables = [
        upsert_partition(pl.concat([notes(range(3)), bad]), url, run_id=RUN, partition="a"),
        upsert_partition(notes(range(3, 5)), url, run_id=RUN, partition="b"),
        upsert_partition(lambda: 1 / 0, url, run_id=RUN, partition="c"),
    ]
    result = distributed.combine(tables)
    assert {status: count for status, count in result.counts.items() if count} == {"created": 5, "failed": 1}
    assert result.run_id == RUN
    assert result.batches == 2
    assert result.partitions.select("partition", "rows", "attempts", "resumed").rows() == [
        ("a", 4, 1, 0), ("b", 2, 1, 0), ("c", None, 1, 0),
    ]  # fmt: skip
    assert result.outcomes.select("partition", "row", "status", "rule").rows() == [
        ("a", 3, "failed", "null_key"), ("c", None, "failed", "source"),
    ]  # fmt: skip
    assert not result.ok
    with pytest.raises(ef.EntityFramesError, match="1 of 3 partitions not read to their end; first: c: ZeroDivision"):
        result.raise_for_failures()
    with pytest.raises(ef.EntityFramesError, match=r"1 failed of 6 rows: row 3 \(a/note/null\): id is null"):
        distributed.combine(tables[:2]).raise_for_failures()
    assert "1 of 3 partitions" in repr(result)
    assert "3 partitions" in result._repr_html_()
    assert result.to_dict()["partitions_with_errors"] == 1
    merged = pa.concat_tables(table.replace_schema_metadata(None) for table in tables)
    again = distributed.combine([merged])
    assert again.counts == result.counts
    assert again.partitions.select("partition", "rows").equals(result.partitions.select("partition", "rows"))
    assert distributed.combine([]).rows == 0


def test_partitions_of_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern is the files that it matches, of this machine or of an address; other items have numbers."""
    for name in ("a/1.parquet", "a/2.parquet", "a/b/3.parquet", "a/4.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()

    def names(source: Any) -> list[str]:
        return [name.replace(str(tmp_path), "") for name in partitions(source)]

    monkeypatch.chdir(tmp_path)
    assert names("a/*.parquet") == ["/a/1.parquet", "/a/2.parquet"]
    assert names(tmp_path / "a" / "**" / "[!1].parquet") == ["/a/2.parquet", "/a/b/3.parquet"]
    assert names(f"file://{tmp_path}/a/*.parquet") == ["file:///a/1.parquet", "file:///a/2.parquet"]
    assert names(f"file://{tmp_path}/**/[!1].parquet") == ["file:///a/2.parquet", "file:///a/b/3.parquet"]
    assert names(f"file://{tmp_path}/?/*.parquet") == names(f"file://{tmp_path}/a/*.parquet")
    assert names(["a/1.parquet", pl.DataFrame(), pl.LazyFrame]) == ["/a/1.parquet", "1", "2"]
    assert names(pl.DataFrame()) == ["0"]
    assert names("s3://bucket/one.parquet") == ["s3://bucket/one.parquet"]
    for wrong, error in (
        (("a/*.arrow"), FileNotFoundError),
        (["a/4.txt"], ValueError),
        (["a/1.parquet"] * 2, ValueError),
    ):
        with pytest.raises(error):
            partitions(wrong)


#: Writes a partition in batches of 100 rows. Its source ends the process with SIGKILL once it has given some of them.
KILLED = textwrap.dedent(
    """
    import os, signal, sys
    import polars as pl
    from entityframes.distributed import Entities, upsert_partition
    url, run, path, given = *sys.argv[1:4], int(sys.argv[4])
    def source():
        for number, piece in enumerate(pl.read_parquet(path).iter_slices(100)):
            if number == given:
                os.kill(os.getpid(), signal.SIGKILL)
            yield piece
    upsert_partition(source, url, run_id=run, partition="p", target=Entities(batch_size=100))
    """
)


@pytest.mark.slow
@pytest.mark.parametrize("given", [1, 2, 6])
def test_a_killed_process(url: str, tmp_path: Path, given: int, connect: Callable[..., ef.EntityStore]) -> None:
    """After a process was killed once or twice, the counts are those of a run without faults."""
    with ef.connect(url) as store:
        store.upsert(notes(range(400)))
    frame = pl.concat([notes(range(150)), notes(range(150, 900), "new")])
    bad = pl.DataFrame({"entity_type": ["note"], "id": [None], "content": ["x"]})
    path = tmp_path / "part.parquet"
    pl.concat([frame, bad]).sample(fraction=1, shuffle=True, seed=3).write_parquet(path)
    for stops in (given, given + 1):
        arguments = [sys.executable, "-c", KILLED, url, RUN, str(path), str(stops)]
        run = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
        assert run.returncode == -9, run.stderr
    table = upsert_partition(path, url, run_id=RUN, partition="p", target=Entities(batch_size=100))
    assert counts(table) == {"created": 500, "failed": 1, "unchanged": 150, "updated": 250}
    assert facts(table)["resumed"] >= given - 1
    distributed.close()
    store = connect()
    assert store.read("note").select("id", "content").sort("id").equals(frame.select("id", "content").sort("id"))
    assert store.verify().is_empty()
