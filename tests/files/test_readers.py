"""Guarantees of the readers beyond single odd files: bounded memory, any kind of file, ids, round trips, messages."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import struct
import tarfile
import threading
import zipfile
import zlib
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import entityframes as ef
from entityframes.files import TextOptions, json_rows, opening, read_files
from entityframes.files.columns import ColumnStats
from entityframes.files.opening import CutLine, line_chunks
from tests.command import Ran
from tests.command import run as run_command
from tests.test_streaming import peak_kib


class Run:
    """Runs the command line on one store, in one folder."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder

    def __call__(self, command: str, *words: object, stdin: bytes = b"") -> Ran:
        return run_command(command, *words, "--store", self.url, cwd=self.folder, stdin=stdin)

    def write(self, name: str, content: str | bytes) -> None:
        (self.folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.fixture
def run(url: str, tmp_path: Path) -> Run:
    return Run(url, tmp_path)


# Many files at once.


def test_keys_of_all_files(run: Run) -> None:
    """FAULTS 57: a later file has other keys, types and depths; the columns hold them all."""
    run.write("a.ndjson", '{"id": "1", "t": [], "o": {"x": null}}\n')
    run.write("b.ndjson", '{"id": "2", "t": ["v"], "o": {"y": {"z": [1.5]}}, "n": 1}\n')
    run.write("c.jsonl", '{"id": "3", "o": {"x": {"q": true}}, "n": 2.5}\n')
    assert run("import", "a.ndjson", "b.ndjson", "c.jsonl", "--type", "t", "--id", "id").returncode == 0
    with ef.connect(run.url) as store:
        read = store.read("t")
    assert read["t"].to_list() == [[], ["v"], None]
    assert read["n"].to_list() == [None, 1.0, 2.5]
    assert read["o"].to_list() == [
        {"x": None, "y": None}, {"x": None, "y": {"z": [1.5]}}, {"x": {"q": True}, "y": None},
    ]  # fmt: skip


def test_rows_that_cannot_be_read_keep_their_place(run: Run) -> None:
    """Over several files, among rows that are refused later: each outcome is that of its own row."""
    run.write("a.csv", "id,v\n1,x\n2,y,z\n,w\n3,x\n")
    run.write("b.csv", b"id,v\n4,\xe9\n5,x\n6\n")
    ran = run("import", "a.csv", "b.csv", "--type", "t", "--id", "id", "--failed", "bad.ndjson", "--json")
    report = json.loads(ran.stdout)
    assert (ran.returncode, report["ok"]) == (1, False)
    assert (report["counts"]["created"], report["counts"]["failed"]) == (4, 3)
    assert [(each["row"], each["error"].split(":")[0]) for each in report["failed"]] == [
        (1, "a.csv, line 3"), (2, "a.csv, line 4"), (4, "b.csv, line 2"),
    ]  # fmt: skip
    failed = [json.loads(line) for line in (run.folder / "bad.ndjson").read_text().splitlines()]
    assert [row["entityframes_line"] for row in failed] == [None, "2,y,z", r"4,\xe9"]
    assert failed[1]["id"] == "2"
    corrected = [{**row, "id": row["id"] or str(number), "v": "new"} for number, row in enumerate(failed)]
    run.write("bad.ndjson", "".join(json.dumps(row) + "\n" for row in corrected))
    assert run("import", "bad.ndjson", "--type", "t", "--id", "id").returncode == 0
    with ef.connect(run.url) as store:
        assert set(store.read("t").columns) == {"id", "content", "v", "content_hash", "created_at", "updated_at"}


@pytest.mark.parametrize("backslash", [False, True])
def test_refused_rows_say_where_they_are(run: Run, backslash: bool) -> None:
    """File and line of each, after values of several lines, blank lines and rows that cannot be read, in every format."""
    quoted = '"say \\"hi\\"\n\nthere"' if backslash else '"say ""hi""\n\nthere"'
    run.write("a.csv", f"id,v\n1,{quoted}\n,lost\n\n\n2,x\n,lost too\n3,x,y\n,and this\n")
    run.write("b.csv", "id,v\n,begins\n4,x\n")
    objects = [{"id": "5"}, {"id": None, "v": 1}, {"v": 2}]
    run.write("c.ndjson", "\n".join(map(json.dumps, objects)) + "\n")
    run.write("d.json", json.dumps(objects, indent=1))
    ran = run("import", "a.csv", "b.csv", "--type", "t", "--id", "id", "--json", "--failed", "bad.ndjson")
    expected = ["a.csv, line 5", "a.csv, line 9", "a.csv, line 10", "a.csv, line 11", "b.csv, line 2"]
    failed = json.loads(ran.stdout)["failed"]
    assert [each["error"].split(":")[0] for each in failed] == expected
    assert [each["error"].endswith(": id is null") for each in failed] == [True, True, False, True, True]
    kept = [json.loads(line) for line in (run.folder / "bad.ndjson").read_text().splitlines()]
    assert sorted(row["entityframes_error"].split(":")[0] for row in kept) == sorted(expected)
    ran = run("import", "c.ndjson", "d.json", "--type", "u", "--id", "id", "--json")
    assert [each["error"] for each in json.loads(ran.stdout)["failed"]] == [
        "c.ndjson, line 2: id is null", "c.ndjson, line 3: id is null",
        "d.json, line 5: id is null", "d.json, line 9: id is null",
    ]  # fmt: skip
    assert "a.csv, line 5: id is null" in run("import", "a.csv", "--type", "t", "--id", "id").stderr


def test_a_dry_run_tells_of_rows_that_cannot_be_read(run: Run) -> None:
    """Exit status 1, and the first of them."""
    run.write("a.csv", "id,v\n1,x\n2,y,z\n")
    ran = run("import", "a.csv", "--type", "t", "--id", "id", "--dry-run")
    assert (ran.returncode, "a.csv, line 3: 3 values" in ran.stdout) == (1, True)
    report = json.loads(run("import", "a.csv", "--type", "t", "--id", "id", "--dry-run", "--json").stdout)
    assert (report["ok"], report["unreadable"]) == (False, 1)


def test_a_later_csv_whose_texts_are_dtypes_of_the_store(run: Run) -> None:
    """A column that is numeric in the store is read as numbers, with a note if its text changes or is not a number."""
    run.write("a.csv", "id,price,n\n1,2.5,1\n")
    run.write("b.csv", "id,price,n\n2,3.10,\n")
    run.write("c.csv", "id,price,n\n3,#N/A,7\n")
    words = ["--type", "t", "--id", "id"]
    assert run("import", "a.csv", *words).returncode == 0
    ran = run("import", "b.csv", *words)
    assert (ran.returncode, "'3.10' (b.csv, line 2)" in ran.stderr) == (0, True)
    ran = run("import", "c.csv", *words)
    assert (ran.returncode, "--null '#N/A'" in ran.stderr) == (2, True)
    assert run("import", "c.csv", *words, "--null", "#N/A").returncode == 0
    with ef.connect(run.url) as store:
        assert store.read("t").select("price", "n").rows() == [(2.5, 1), (3.1, None), (None, 7)]


def test_an_array_that_ends_anywhere_in_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 57: the values of an array are split correctly wherever a block ends, and lines are counted."""
    objects = [{"id": str(n), "v": ["x,]" * n], "o": {"a": '"\\'}} for n in range(12)]
    text = json.dumps(objects, indent=1).replace('"id": "7"', '"id": bad')
    line = text[: text.index("bad")].count("\n")
    (tmp_path / "a.json").write_text(text)
    for block in range(1, 60, 4):
        monkeypatch.setattr(opening, "BLOCK", block)
        monkeypatch.setattr(json_rows, "BLOCK", block)
        folder = tmp_path / str(block)
        folder.mkdir()
        rows = read_files([str(tmp_path / "a.json")], None, TextOptions(), folder)
        assert rows.scan().collect().rows(named=True) == objects[:7] + objects[8:]
        assert rows.scan().head(2).collect().rows(named=True) == objects[:2]
        assert [each.error.split(":")[0] for each in rows.unread.rows] == [f"a.json, line {line}"]


def _read(folder: Path, name: str, content: bytes, options: TextOptions | None = None) -> Any:
    """The rows of one file, and what could not be read of it."""
    (folder / name).write_bytes(content)
    target = folder / f"read {len(list(folder.iterdir()))}"
    target.mkdir()
    return read_files([str(folder / name)], None, options or TextOptions(), target)


def test_values_of_several_lines_at_the_edges_of_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records with quotes, doubled or escaped, are the same wherever a block ends."""
    for escape, quote in ((None, '""'), ("\\", '\\"')):
        text = "k,v\n" + "".join(f'{n},"line {n}\nof {quote}several{quote}\n"\n' for n in range(8))
        expected = [{"k": str(n), "v": f'line {n}\nof "several"\n'} for n in range(8)]
        for block in (7, 64, 100_000):
            monkeypatch.setattr(opening, "BLOCK", block)
            rows = _read(tmp_path, "a.csv", text.encode(), TextOptions(escape=escape))
            assert rows.scan().collect().select("k", "v").cast(pl.String).rows(named=True) == expected
            assert rows.unread.rows == []


def test_lines_of_a_wrong_length(tmp_path: Path) -> None:
    """Blank lines and empty values beyond the last column are ignored, with a note; other values are not dropped."""
    rows = _read(tmp_path, "a.csv", b'k\na\n  \nb\n"  "\n')
    assert rows.scan().collect()["k"].to_list() == ["a", "b", "  "]
    assert rows.notes.all() == ["a.csv: 1 blank line is ignored, such as line 3"]
    assert _read(tmp_path, "c.csv", b"k\na\n\n \nb\n").notes.all() == [
        "c.csv: 2 blank lines are ignored, such as line 3"
    ]
    rows = _read(tmp_path, "b.csv", b'k,v\n1,x,,\n2,y,lost,\n3,z,,lost\n4,"open\n')
    assert rows.scan().collect()["v"].to_list() == ["x"]
    found = [(each.error.split(":")[0], "4 values" in each.error) for each in rows.unread.rows]
    assert found == [("b.csv, line 3", True), ("b.csv, line 4", True), ("b.csv, line 5", False)]
    assert "a quote is not closed" in rows.unread.rows[2].error
    # The limit of Python's parser is that of the whole process.
    assert csv.field_size_limit() == 131_072


def test_numbers_keep_their_digits(tmp_path: Path) -> None:
    """In JSON, whether or not an object of the same shape was seen before; exact numbers remain numbers."""
    big, long = 2**64, "0.123456789012345671"
    rows = _read(tmp_path, "a.ndjson", "".join(f'{{"n": {n}}}\n' for n in (1, 2**60, big)).encode())
    assert rows.scan().collect()["n"].to_list() == [1, 2**60, big]
    rows = _read(tmp_path, "b.ndjson", b'{"x": 0.30000000000000004}\n')
    assert rows.scan().collect()["x"].to_list() == [0.30000000000000004]
    rows = _read(tmp_path, "c.ndjson", f'{{"x": {long}}}\n{{"x": 0.5}}\n'.encode())
    assert rows.scan().collect()["x"].to_list() == [long, "0.5"]


def test_every_float_in_scientific_notation() -> None:
    """Its shortest form is a number; with another digit or another exponent it is text."""
    drawn = random.Random(0)
    numbers = [drawn.uniform(-10, 10) * 10.0 ** drawn.randint(-308, 307) for _ in range(2_000)] + [5e-324, 1e-05, 1e5]
    for number in numbers:
        text = next(text for text in (f"{number:.{digits}e}" for digits in range(17)) if float(text) == number)
        stats = ColumnStats()
        stats.update(pl.Series([text, "0.5"]), "file.csv", [2, 3])
        assert stats.dtype() == pl.Float64, text
    odd = ["1.0e-05", "1e5", "1E-05", "10e-05", "0e+00", "1e+400", "4e-324", "1e-400", "1.00000000000000001e-05"]
    for text in odd:
        stats = ColumnStats()
        stats.update(pl.Series([text, "0.5"]), "file.csv", [2, 3])
        assert stats.dtype() == pl.String, text


@pytest.mark.parametrize("engine", ["duckdb"])
def test_an_integer_that_no_float_holds(run: Run) -> None:
    """It is not rounded to fit a field of floats."""
    for name, value in (("a", "0.5"), ("b", "3"), ("c", str(2**53 + 1))):
        run.write(f"{name}.ndjson", f'{{"id": "{name}", "x": {value}}}\n')
        run("import", f"{name}.ndjson", "--type", "t", "--id", "id")
    with ef.connect(run.url) as store:
        found = store.get(ef.ids("t", ["a", "b", "c"]))["metadata"].to_list()
    assert found[:2] == ['{"x":0.5}', '{"x":3}']
    assert found[2] in (None, f'{{"x":{2**53 + 1}}}')


def test_an_archive_is_no_table(tmp_path: Path) -> None:
    """A tar archive, packed or not, and a file that only begins like a packed one."""
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("a.csv"))
    data = (tmp_path / "x.tar").read_bytes()
    for name, content, message in (
        ("a.csv", data, "tar archive"), ("a.csv.gz", gzip.compress(data), "tar archive"),
        ("b.csv.gz", b"\x1f\x8b\xff\xff" + bytes(20), "cannot be decompressed"),
    ):  # fmt: skip
        with pytest.raises(ef.SchemaError, match=message):
            _read(tmp_path, name, content)


# Files of any kind.


def test_an_encrypted_archive(tmp_path: Path) -> None:
    """It is named, instead of asking for a password that cannot be given."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.csv", "id\n1\n")
    data = bytearray(packed.getvalue())
    # The flag in the header of the member, and in the directory at the end.
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + place] |= 1
    with pytest.raises(ef.SchemaError, match="a.csv.zip is encrypted: unpack it first"):
        _read(tmp_path, "a.csv.zip", bytes(data))


@pytest.mark.parametrize("engine", ["duckdb"])
def test_a_pipe_a_device_and_a_folder(run: Run) -> None:
    """FAULTS 53: what is not a regular file is read once, or rejected with a message; nothing blocks forever."""
    words = ["--type", "t", "--id", "id", "--format", "csv"]
    pipe = run.folder / "pipe"
    os.mkfifo(pipe)
    thread = threading.Thread(target=lambda: pipe.write_bytes(gzip.compress(b"id,v\n1,x\n")))
    thread.start()
    assert "1 created" in run("import", "pipe", *words).stdout
    thread.join()
    (run.folder / "folder.csv").mkdir()
    for source, message in (
        ("/dev/null", "is empty"), ("/dev/zero", "a device"), ("folder.csv", "is a folder"), (".", "is a folder"),
    ):  # fmt: skip
        ran = run("import", source, *words)
        assert (ran.returncode, message in ran.stderr) == (2, True), ran.stderr


@pytest.mark.parametrize("engine", ["duckdb"])
def test_a_pipe_into_which_nobody_writes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 53: a message after a few seconds."""
    monkeypatch.setattr(opening, "PIPE_WAIT", 0.1)
    os.mkfifo(run.folder / "pipe.csv")
    ran = run("import", "pipe.csv", "--type", "t", "--id", "id")
    assert (ran.returncode, "no program writes" in ran.stderr) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "ndjson"])
def test_too_many_columns(tmp_path: Path, kind: str) -> None:
    """FAULTS 53: 200,000 columns are rejected with a remedy."""
    names = [f"c{number}" for number in range(200_000)]
    text = ",".join(names) + "\n" if kind == "csv" else json.dumps(dict.fromkeys(names, 1)) + "\n"
    (tmp_path / f"a.{kind}").write_text(text)
    with pytest.raises(ef.SchemaError, match="200,000 columns"):
        read_files([str(tmp_path / f"a.{kind}")], None, TextOptions(), tmp_path)


def packed(path: Path, head: bytes, lines: bytes, times: int) -> None:
    """A gzip file with a header and repeated lines, which are compressed only once."""
    packing = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    with path.open("wb") as file:
        file.write(b"\x1f\x8b\x08" + bytes(7) + packing.compress(head) + packing.flush(zlib.Z_FULL_FLUSH))
        # Data after a full flush does not depend on the data before it.
        file.write((packing.compress(lines) + packing.flush(zlib.Z_FULL_FLUSH)) * times + packing.flush())
        check = zlib.crc32(head)
        for _ in range(times):
            check = zlib.crc32(lines, check)
        file.write(struct.pack("<II", check, (len(head) + len(lines) * times) & 0xFFFFFFFF))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "ndjson"])
def test_memory_does_not_grow_with_what_is_packed(tmp_path: Path, kind: str) -> None:
    """FAULTS 53: six times the text in a small archive costs less than twice the memory."""
    line = "{n},{t}\n" if kind == "csv" else '{{"id": "{n}", "t": "{t}"}}\n'
    script = """
import sys, tempfile
from pathlib import Path
import polars as pl
from entityframes.files import TextOptions, delimited, json_rows, read_files
from entityframes.frames.sources import iterate
delimited.PIECE = json_rows.PIECE = 1 << 20
with tempfile.TemporaryDirectory() as spool:
    rows = read_files([sys.argv[1]], None, TextOptions(), Path(spool))
    assert sum(frame.height for frame in iterate(rows.scan())) == int(sys.argv[2])
"""
    peaks = []
    for rows in (40_000, 240_000):
        path = tmp_path / f"{rows}.{kind}.gz"
        lines = "".join(line.format(n=number, t="x" * 1_500) for number in range(1_000))
        packed(path, b"id,t\n" if kind == "csv" else b"", lines.encode(), rows // 1_000)
        peaks.append(peak_kib(script, path, rows))
    assert peaks[1] < peaks[0] * 2, peaks


def test_a_file_that_does_not_fit_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 53: it fails before the disk is full, and names the folder."""
    (tmp_path / "a.csv").write_text("id\n1\n")
    monkeypatch.setattr(opening, "ROOM", 1 << 60)
    with pytest.raises(ef.SchemaError, match="TMPDIR"):
        read_files([str(tmp_path / "a.csv")], None, TextOptions(), tmp_path)


def test_a_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 53: a record that is too long is skipped up to the next line, and the row fails."""
    blocks = ["id\n", "x" * 50, "y" * 60, "z\n2\n3", "4\n"]
    monkeypatch.setattr(opening, "MAX_RECORD", 100)
    found = [line for chunk in line_chunks(iter(blocks)) for line in chunk]
    assert [type(line) for line in found] == [str, CutLine, str, str]
    assert found[2:] == ["2\n", "34\n"]
    monkeypatch.setattr(opening, "BLOCK", 40)
    (tmp_path / "a.csv").write_text("id\n1\n" + "x" * 150 + "\n2\n")
    (tmp_path / "a.ndjson").write_text('{"id": 1}\n{"id": "' + "x" * 150 + '"}\n{"id": 2}\n')
    for name in ("a.csv", "a.ndjson"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        rows = read_files([str(tmp_path / name)], None, TextOptions(), folder)
        assert "longer than" in rows.unread.rows[0].error
        assert rows.scan().collect().height == 2


# Names in options.


def test_names_with_commas_and_blanks(run: Run) -> None:
    """A value that is a column name takes precedence over splitting it at its commas."""
    run.write("a.csv", '"a,b", c ,d,e\n1,2,01,4\n')
    words = ["import", "a.csv", "--type", "t", "--id", "a,b", "--metadata", " c ", "--metadata", "d,e"]
    assert run(*words, "--text", "d", "--number", "e").returncode == 0
    with ef.connect(run.url) as store:
        assert store.read("t").drop("content_hash", "created_at", "updated_at", "content").row(0, named=True) == {
            "id": "1", " c ": 2, "d": "01", "e": 4,
        }  # fmt: skip
    run.write("b.csv", "1,2\n")
    assert run("import", "b.csv", "--type", "u", "--id", "x, y", "--columns", '"x, y",z').returncode == 0


# Ids of several columns.


def test_parts_of_an_id_never_run_into_each_other(run: Run) -> None:
    """FAULTS 59: different parts always make different ids, in the library and on the command line."""
    texts = ["a", "|", "a|", "|a", "\\", "\\|", "a\\", ":", "::", "a:", ":a", "x::y"]
    pairs = [(one, other) for one in texts for other in texts]
    rows = pl.DataFrame({"k": [f"k{n}" for n in range(len(pairs))]}).with_columns(
        x=pl.Series([one for one, _ in pairs]), y=pl.Series([other for _, other in pairs])
    )
    made = ef.entities(rows, "t", id=["x", "y"])
    assert made["id"].n_unique() == len(pairs)
    assert made["id"][0] == "a|a"
    rows.write_csv(run.folder / "a.csv")
    for number, separator in enumerate(["|", "::", "aa", ".$"]):
        ran = run("import", "a.csv", "--type", f"t{number}", "--id", "x,y", "--id-separator", separator)
        assert (ran.returncode, f"{len(pairs)} created" in ran.stdout) == (0, True), ran.stderr
    with ef.connect(run.url) as store:
        assert sorted(store.read("t0")["id"]) == sorted(made["id"])
    assert run("import", "a.csv", "--type", "t", "--id", "x,y", "--id-separator", "").returncode == 2


def test_floats_in_an_id(store: ef.EntityStore) -> None:
    """A whole float is the integer that it was before a gap made it a float; a gap is a null id; one alone is refused."""
    rows = pl.DataFrame({"a": [1.0, 2.5, None, float("nan"), -0.0], "b": ["x"] * 5})
    made = ef.entities(rows, "t", id=["a", "b"])
    assert made["id"].to_list() == ["1|x", "2.5|x", None, None, "0|x"]
    whole = ef.entities(pl.DataFrame({"a": [1, 2], "b": ["x"] * 2}), "t", id=["a", "b"])
    assert whole["id"][0] == made["id"][0]
    with pytest.raises(ef.SchemaError, match=r"astype\('Int64'\)"):
        ef.entities(rows, "t", id="a")
    with pytest.raises(ef.SchemaError, match="no stable text"):
        ef.entities(rows.with_columns(a=pl.lit(True)), "t", id=["a", "b"])


# The store's own output as input.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.csv", "x.tsv.gz", "x.ndjson", "x.json", "x.parquet"])
def test_export_and_import_twice(run: Run, name: str) -> None:
    """FAULTS 60: the store's own columns do not become metadata, nothing is hidden or changed, and notes are correct."""
    run.write("a.csv", "k,text,created_at,day,n,price,zip\n1,one,x,2024-01-02,5,1.5,01234\n2,,y,,6,2.5,99999\n")
    first = ["import", "a.csv", "--type", "t", "--id", "k", "--content", "text"]
    names = ["--metadata", "created_at,day,n,price,zip"]
    assert run(*first, *names).returncode == 0
    with ef.connect(run.url) as store:
        before = store.read("t")
    for _ in range(2):
        assert run("export", "t", "--out", name).returncode == 0
        ran = run("import", name, "--type", "t", "--id", "id", "--content", "content")
        assert (ran.returncode, "2 unchanged" in ran.stdout, ran.stderr) == (0, True, "")
    with ef.connect(run.url) as store:
        assert store.read("t").equals(before)
        again = store.upsert(ef.entities(store.read("t"), "t", id="id", content="content"))
        assert again.counts["unchanged"] == 2
        got = store.get(ef.ids("t", ["1"]))
        assert set(json.loads(got["metadata"][0])) == {"created_at", "day", "n", "price", "zip"}
        assert ef.entities(got, "t", id="id", content="content")["metadata"].struct.fields == [
            "entity_type",
            "metadata",
        ]


def test_typed_columns_go_out_and_in_again(store: ef.EntityStore, url: str, tmp_path: Path) -> None:
    """FAULTS 60: dates, times and decimals are read with the dtypes of the store."""
    import datetime as dt

    utc = dt.UTC
    rows = pl.DataFrame(
        {
            "k": ["a", "b"],
            "day": [dt.date(2024, 1, 2), None],
            "at": [dt.datetime(2024, 1, 2, 3, 4, 5, 678), None],
            "zoned": pl.Series([dt.datetime(2024, 1, 2, 3, tzinfo=utc), None], dtype=pl.Datetime("us", "Europe/Rome")),
            "time": [dt.time(1, 2, 3, 4), None],
            "money": pl.Series(["1.50", None]).cast(pl.Decimal(10, 2)),
            "small": pl.Series([7, None], dtype=pl.UInt8),
            "kind": pl.Series(["x", None], dtype=pl.Enum(["x", "y"])),
        }
    )
    store.upsert(ef.entities(rows, "t", id="k"))
    before = store.read("t")
    store.close()
    run = Run(url, tmp_path)
    for name in ("x.csv", "x.ndjson", "x.parquet"):
        assert run("export", "t", "--out", name).returncode == 0
        ran = run("import", name, "--type", "t", "--id", "id", "--content", "content")
        assert (ran.returncode, "2 unchanged" in ran.stdout) == (0, True), (name, ran.stderr)
    with ef.connect(url) as again:
        assert again.read("t").equals(before)


def test_digits_beyond_a_stored_decimal(run: Run, url: str) -> None:
    """They are not rounded: a file with such a value is refused."""
    with ef.connect(url) as store:
        rows = pl.DataFrame({"k": ["a"], "money": pl.Series(["1.50"]).cast(pl.Decimal(10, 2))})
        store.upsert(ef.entities(rows, "t", id="k"), progress=False)
    run.write("a.csv", "id,money\na,1.505\nb,2.25\nc,3.999\n")
    ran = run("import", "a.csv", "--type", "t", "--id", "id")
    assert (ran.returncode, "'money' is Decimal(precision=10, scale=2) there" in ran.stderr) == (2, True)
    run.write("a.csv", "id,money\na,1.5\nb,2.25\n")
    ran = run("import", "a.csv", "--type", "t", "--id", "id")
    assert (ran.returncode, "1 created, 1 unchanged" in ran.stdout) == (0, True)
    with ef.connect(url) as store:
        assert [str(value) for value in store.read("t")["money"]] == ["1.50", "2.25"]


def test_own_columns_of_the_names_of_the_store(run: Run) -> None:
    """FAULTS 60: an ignored column is reported; given in --metadata, it is stored."""
    run.write("a.csv", "id,created_at\n1,x\n")
    ran = run("import", "a.csv", "--type", "t", "--id", "id")
    assert (ran.returncode, "'created_at' are ignored" in ran.stderr) == (0, True)
    assert run("import", "a.csv", "--type", "t", "--id", "id", "--metadata", "created_at").returncode == 0
    rows = pl.DataFrame({"k": ["a"], "updated_at": ["x"], "n": [1]})
    with pytest.warns(UserWarning, match="'updated_at' are left out"):
        assert ef.entities(rows, "t", id="k")["metadata"].struct.fields == ["n"]
    assert ef.entities(rows, "t", id="k", metadata=["updated_at"])["metadata"].struct.fields == ["updated_at"]


# Nested dtypes.


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([[]], [["v"]]),
        ([None], [[{"a": 1}]]),
        ([{"x": 1}], [{"x": 2, "y": "new"}]),
        ([{"x": 1, "y": "old"}], [{"x": 2}]),
        ([[{"x": []}]], [[{"x": [{"z": True}], "w": 1.5}]]),
        ([{"a": {"b": None}}], [{"a": {"b": {"c": [1]}}}]),
    ],
)
def test_nested_dtypes_widen(store: ef.EntityStore, first: list[Any], second: list[Any]) -> None:
    """FAULTS 57: at every depth, in both orders, as typed columns and as JSON text."""

    def frame(id: str, values: list[Any]) -> pl.DataFrame:
        return ef.entities(pl.DataFrame({"k": [id], "v": values}), "t", id="k")

    def complete(value: Any, dtype: Any) -> Any:
        if isinstance(value, dict):
            return {field.name: complete(value.get(field.name), field.dtype) for field in dtype.fields}
        return [complete(item, dtype.inner) for item in value] if isinstance(value, list) else value

    assert store.upsert(frame("1", first)).ok
    assert store.upsert(frame("2", second)).ok
    assert store.upsert(frame("3", first)).ok
    text = pl.DataFrame(
        {"entity_type": ["t"], "id": ["4"], "content": [""], "metadata": [json.dumps({"v": second[0]})]}
    )
    assert store.upsert(text).ok
    read = store.read("t")["v"]
    assert read.to_list() == [complete(each[0], read.dtype) for each in (first, second, first, second)]
    assert store.verify().is_empty()


def test_json_text_widens_what_was_null(store: ef.EntityStore) -> None:
    """FAULTS 57: a declared dtype that was Null at some depth is set by the first values given as JSON text."""
    rows = pl.DataFrame({"k": ["a"], "v": [{"x": None, "y": []}], "n": [None]})
    assert store.upsert(ef.entities(rows, "t", id="k")).ok
    metadata = json.dumps({"v": {"x": 1, "y": [1, 2.5], "z": {"q": "new"}}, "n": True})
    text = pl.DataFrame({"entity_type": ["t"], "id": ["b"], "content": [""], "metadata": [metadata]})
    assert store.upsert(text).ok
    assert store.read("t")["v"].to_list()[1] == {"x": 1, "y": [1.0, 2.5], "z": {"q": "new"}}
    assert store.read("t")["n"].to_list() == [None, True]
    misfit = text.with_columns(metadata=pl.lit('{"v": {"x": "text"}}'))
    assert store.upsert(misfit).counts["failed"] == 1


def test_two_writers_widen_one_field(store: ef.EntityStore, url: str) -> None:
    """FAULTS 57: the dtype that each of them has read may be outdated; the field holds what both have written."""

    def frame(id: str, value: Any) -> pl.DataFrame:
        return ef.entities(pl.DataFrame({"k": [id], "v": [value]}), "t", id="k")

    with ef.connect(url) as other:
        assert store.upsert(frame("1", {"x": 1})).ok
        assert other.upsert(frame("2", {"x": 1, "y": [None]})).ok
        assert store.upsert(frame("3", {"z": "new"})).ok
        assert other.upsert(frame("4", {"x": 2, "y": [1.5]})).ok
        assert store.read("t")["v"].to_list() == [
            {"x": 1, "y": None, "z": None}, {"x": 1, "y": [None], "z": None},
            {"x": None, "y": None, "z": "new"}, {"x": 2, "y": [1.5], "z": None},
        ]  # fmt: skip
        assert other.read("t").equals(store.read("t"))


def test_the_deepest_typed_value(run: Run) -> None:
    """FAULTS 57: as deep as typed metadata may be, it comes back; deeper is a failed row."""
    deep: Any = [1]
    for number in range(60):
        deep = [deep] if number % 2 else {"k": deep}
    run.write(
        "a.ndjson", json.dumps({"id": "1", "v": deep}) + "\n" + json.dumps({"id": "2", "v": [[deep] * 4] * 4}) + "\n"
    )
    run.write("b.ndjson", json.dumps({"id": "1", "v": [[[[[deep]]]]]}) + "\n")
    assert run("import", "a.ndjson", "--type", "t", "--id", "id").returncode in (0, 1)
    ran = run("import", "b.ndjson", "--type", "u", "--id", "id")
    assert (ran.returncode, "b.ndjson, line 1: nested deeper than" in ran.stderr) == (1, True)
    with ef.connect(run.url) as store:
        assert store.read("t")["v"][0] is not None


def test_a_header_alone(run: Run) -> None:
    """It has no rows, and is not an error."""
    run.write("a.csv", "id,v\n\n")
    ran = run("import", "a.csv", "--type", "t", "--id", "id")
    assert (ran.returncode, "no rows" in ran.stdout) == (0, True), ran.stderr


def test_other_nested_dtypes_are_refused(store: ef.EntityStore) -> None:
    """A leaf of another dtype is a conflict, whatever is around it."""
    store.upsert(ef.entities(pl.DataFrame({"k": ["a"], "v": [[{"x": 1}]]}), "t", id="k"))
    with pytest.raises(ef.SchemaError, match="'v' is"):
        store.upsert(ef.entities(pl.DataFrame({"k": ["b"], "v": [[{"x": "text"}]]}), "t", id="k"))


# Many columns.


def test_columns_cost_what_they_hold(store: ef.EntityStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The schema of a frame, which has all its columns, is not made anew for each of them."""
    names = [f"c{number}" for number in range(600)]
    rows = pl.DataFrame({"k": ["a"], **{name: ["x"] for name in names}})
    asked = 0
    schema = pl.DataFrame.schema.fget

    def counted(frame: pl.DataFrame) -> Any:
        nonlocal asked
        asked += 1
        return schema(frame)

    monkeypatch.setattr(pl.DataFrame, "schema", property(counted))
    store.upsert(ef.entities(rows, "t", id="k"))
    assert store.read("t").width == len(names) + 5
    assert asked < 100


# Values that Polars does not have.


def test_types_that_polars_has_not(store: ef.EntityStore) -> None:
    """INTERVAL, UNION and 256-bit decimals are rejected with the column and a remedy, also in lists and streams."""
    import decimal

    import duckdb
    import pyarrow as pa

    connection = duckdb.connect()
    sources = [
        connection.sql("SELECT 'a' AS k, INTERVAL 1 DAY AS v"),
        connection.sql("SELECT 'a' AS k, [INTERVAL 1 DAY] AS v"),
        connection.sql("SELECT 'a' AS k, union_value(x := 1) AS v"),
        pa.table({"k": ["a"], "v": pa.array([decimal.Decimal("1.5")], pa.decimal256(50, 2))}),
        pa.table({"k": ["a"], "v": pa.array([{"x": (1, 2, 3)}], pa.struct([("x", pa.month_day_nano_interval())]))}),
    ]
    for source in sources:
        with pytest.raises(ef.SchemaError, match="'v' is .*cast"):
            ef.entities(source, "t", id="k")
    rows = connection.sql("SELECT 't' AS entity_type, 'a' AS id, '' AS content, {v: INTERVAL 1 DAY} AS metadata")
    with pytest.raises(ef.SchemaError, match="'metadata' is"):
        store.upsert(rows)


def test_nul_in_a_key_at_every_depth(run: Run) -> None:
    """PostgreSQL cannot store it: the row fails with its line, and the others are imported."""
    values = [{"k\0": 1}, {"k": {"l\0": 1}}, {"k": [{"l": [{"m\0": 1}]}]}, {"k": [1]}]
    run.write("a.ndjson", "".join(json.dumps({"id": str(n), "m": value}) + "\n" for n, value in enumerate(values)))
    ran = run("import", "a.ndjson", "--type", "t", "--id", "id")
    assert "1 created, 3 failed" in ran.stdout
    assert ran.stderr.count("a key contains a NUL character") == 3


def test_binary_in_json(run: Run) -> None:
    """It is rejected before anything is written, also as the file of failed rows, and nested."""
    pl.DataFrame({"k": ["a", None], "v": [{"b": b"x"}, None]}).write_parquet(run.folder / "a.parquet")
    words = ["import", "a.parquet", "--type", "t", "--id", "k"]
    for name in ("bad.ndjson", "bad.json", "bad.csv"):
        ran = run(*words, "--failed", name)
        assert (ran.returncode, "cannot represent the columns 'v'" in ran.stderr) == (2, True)
    assert run("stats").stdout.count("\n") == 1
    assert run(*words, "--failed", "bad.parquet").returncode == 1
    for options in (["--out", "x.ndjson"], ["--json"], ["--format", "ndjson"]):
        ran = run("export", "t", *options)
        assert (ran.returncode, "cannot represent the columns" in ran.stderr) == (2, True), ran.stderr


# Messages that name the option that helps.


def test_messages_that_help(run: Run) -> None:
    """The message names what is missing, and the option that provides it."""
    run.write("a.csv", "k,v\n1,2\n")
    ran = run("import", "a.csv")
    assert (ran.returncode, "--type TYPE --id COLUMN" in ran.stderr) == (2, True)
    run.write("ids.csv", "1\n2\n")
    ran = run("exists", "--type", "t", "--ids", "ids.csv")
    assert (ran.returncode, "- < ids.csv" in ran.stderr) == (2, True)
    run.write("n.ndjson", '{"id": "1", "v": [1]}\n{"v": [2]}\n')
    ran = run("import", "n.ndjson", "--type", "t", "--id", "id", "--failed", "bad.csv")
    assert (ran.returncode, "csv cannot represent the columns 'v'" in ran.stderr) == (2, True)
    assert run("stats").stdout.count("\n") == 1
    for options, message in (
        (["--encoding", "no"], "cp1252"), (["--encoding", "hex"], "cp1252"), (["--separator", "xy"], "--no-quote"),
        (["--quote", "ab"], "--quote"), (["--escape", "ab"], "--escape"), (["--number", "q"], "no column 'q'"),
        (["--metadata", "q"], "no column 'q'"), (["--content", "q"], "no column 'q'"),
    ):  # fmt: skip
        ran = run("import", "a.csv", "--type", "t", "--id", "k", *options)
        assert (ran.returncode, message in ran.stderr) == (2, True), ran.stderr


def test_tables_of_other_columns_or_dtypes(run: Run) -> None:
    """It names the file, the column and both dtypes, without hints of another library; compatible dtypes are widened."""
    pl.DataFrame({"k": ["1"], "v": [[None]], "n": [1]}).write_parquet(run.folder / "a.parquet")
    pl.DataFrame({"k": ["2"], "v": [["x"]], "n": [2]}).write_parquet(run.folder / "b.parquet")
    pl.DataFrame({"k": ["3"], "n": [2]}).write_parquet(run.folder / "c.parquet")
    pl.DataFrame({"k": ["4"], "v": [["x"]], "n": ["text"]}).write_parquet(run.folder / "d.parquet")
    words = ["--type", "t", "--id", "k"]
    assert "2 created" in run("import", "a.parquet", "b.parquet", *words).stdout
    ran = run("import", "a.parquet", "c.parquet", *words)
    assert (ran.returncode, "c.parquet has different columns than a.parquet (lacks 'v')" in ran.stderr) == (2, True)
    ran = run("import", "a.parquet", "d.parquet", *words)
    assert (ran.returncode, "'n' is String in d.parquet and Int64 in a.parquet" in ran.stderr) == (2, True)


def test_notes_are_counted(run: Run) -> None:
    """A few of each kind are shown, and all of them are in the report for scripts."""
    names = [f"c{number}" for number in range(40)]
    run.write("a.csv", f"id,{','.join(names)}\n1{',01' * 40}\n")
    ran = run("import", "a.csv", "--type", "t", "--id", "id")
    assert ran.stderr.count("note: column") == 5
    assert "and 35 more like this" in ran.stderr
    assert len(json.loads(run("import", "a.csv", "--type", "u", "--id", "id", "--json").stdout)["notes"]) == 40


def test_line_ends_at_the_edges_of_blocks() -> None:
    """A CR LF that is split between two blocks is one line ending; the lines equal those of Python."""
    text = "a\r\nb\rc\n\r\n\rd\u2028e\x85f"
    for size in range(1, 8):
        blocks = [text[at : at + size] for at in range(0, len(text), size)]
        found = [line for chunk in line_chunks(iter(blocks)) for line in chunk]
        assert found == list(io.StringIO(text, newline=""))
