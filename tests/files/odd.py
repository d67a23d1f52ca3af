"""A folder of odd files of rows, and what an independent reader (Python's csv and json) finds in each."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from dataclasses import dataclass
from typing import Any

import pyarrow as pa


@dataclass
class Odd:
    """A file, how it is imported, and what is in it."""

    name: str
    content: bytes
    #: Options of the import besides type and id.
    options: tuple[str, ...] = ()
    #: The rows that can be read, by an independent reader; None where the whole file is refused.
    rows: list[dict[str, Any]] | None = None
    #: The lines that cannot be read.
    failed: tuple[int, ...] = ()
    #: Text that the output must contain, in addition to the notes for differences.
    message: str = ""
    #: Columns with the id.
    id: tuple[str, ...] = ("id",)


def read_csv(text: str, bad: tuple[int, ...] = (), **dialect: Any) -> list[dict[str, Any]]:
    """The rows of a CSV without the lines that are bad; empty values are None."""
    lines = list(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    good = [line for number, line in enumerate(lines, 1) if number not in bad]
    header, *rows = [row for row in csv.reader(good, **dialect) if row and row != [""]]
    return [
        {name: value or None for name, value in zip(header, [*row, *[""] * (len(header) - len(row))], strict=True)}
        for row in rows
    ]


def delimited(
    name: str,
    text: str,
    *options: str,
    encoding: str = "utf-8",
    failed: tuple[int, ...] = (),
    message: str = "",
    pack: Any = bytes,
    rows: list[dict[str, Any]] | None = None,
    id: tuple[str, ...] = ("id",),
    raw: bytes | None = None,
    **dialect: Any,
) -> Odd:
    """A CSV; its rows are read with the dialect unless they are given."""
    found = rows if rows is not None else read_csv(text, failed, **dialect)
    content = raw if raw is not None else text.encode(encoding)
    return Odd(name, pack(content), options, found, failed, message, id)


def lines(name: str, *objects: Any, failed: dict[int, str] | None = None, end: str = "\n", message: str = "") -> Odd:
    """NDJSON; strings are written unchanged, and the lines in `failed` are inserted at these numbers."""
    texts = [each if isinstance(each, str) else json.dumps(each, ensure_ascii=False) for each in objects]
    rows = [json.loads(text) for text in texts]
    for number, bad in sorted((failed or {}).items()):
        texts.insert(number - 1, bad)
    content = "".join(text + end for text in texts).encode("utf-8", "surrogateescape")
    return Odd(name, content, (), rows, tuple(failed or ()), message)


def zipped(*members: tuple[str, bytes]) -> bytes:
    """A zip archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def zstandard(content: bytes) -> bytes:
    """Data compressed with Zstandard."""
    return pa.compress(content, codec="zstd", asbytes=True)


PLAIN = "id,a,b\n1,x,2\n2,y,3\n"
HUGE = "123456789012345678901234567890"


def files() -> list[Odd]:
    """All of them."""
    return [
        *_line_ends(),
        *_quotes(),
        *_encodings(),
        *_ragged(),
        *_codes(),
        *_dialects(),
        *_json(),
        *_packed(),
        *_refused(),
    ]


def _line_ends() -> list[Odd]:
    return [
        delimited("cr.csv", PLAIN.replace("\n", "\r")),
        delimited("crlf.csv", PLAIN.replace("\n", "\r\n")),
        delimited("mixed.csv", "id,a\r\n1,x\n2,y\r3,z\r\n"),
        delimited("no_last_end.csv", "id,a\n1,x\n2,y"),
        delimited("trailing_blank.csv", "id,a\n1,x\n\n\n"),
        delimited("blank_between.csv", "id,a\n1,x\n\n2,y\n", message="1 blank line is ignored"),
        delimited(
            "line_of_blanks.csv",
            "id,a\n1,x\n   \n2,y\n",
            message="1 blank line is ignored",
            rows=read_csv("id,a\n1,x\n2,y\n", ()),
        ),
        delimited("cr_in_value.csv", 'id,a\n1,"x\ry"\n2,"x\r\ny"\n3,"x\ny"\n'),
        delimited("separators_of_unicode.csv", "id,a\n1,x\u2028y\n2,x\x85y\n3,x\x0by\n"),
        delimited("one_column.csv", "id\na\nb\n"),
    ]


def _quotes() -> list[Odd]:
    backslash = 'id,a\n1,"say \\"hi\\", she"\n2,"C:\\\\dir"\n3,plain\n'
    return [
        delimited("doubled.csv", 'id,a\n1,"say ""hi"""\n2,"a,b"\n'),
        delimited(
            "backslash.csv", backslash, message="escape",
            rows=[{"id": "1", "a": 'say "hi", she'}, {"id": "2", "a": "C:\\dir"}, {"id": "3", "a": "plain"}],
        ),
        delimited("backslash_asked.csv", backslash, "--escape", "\\", escapechar="\\", doublequote=False),
        delimited(
            "backslash_lines.csv", 'id,a\n1,"say \\"hi\\"\n\nthere"\n2,"and \\"so\n on\\""\n3,plain\n', message="escape",
            rows=[
                {"id": "1", "a": 'say "hi"\n\nthere'}, {"id": "2", "a": 'and "so\n on"'}, {"id": "3", "a": "plain"},
            ],
        ),
        delimited(
            "wide.csv", "id,a\n1,x,,\n2,y\n3,z,\n", message="2 lines have empty values beyond the last column, such as line 2",
            rows=[{"id": "1", "a": "x"}, {"id": "2", "a": "y"}, {"id": "3", "a": "z"}],
        ),
        delimited("windows_path.csv", 'id,a\n1,"C:\\dir\\"\n2,\\N\n'),
        delimited("inches.csv", 'id,a\n1,5" disk\n2,3\'5"\n'),
        delimited("stray.csv", 'id,a\n1,"open\n2,b\n3,c\n', failed=(2,), message="a quote is not closed"),
        delimited("stray_closed.csv", 'id,a\n1,"x" y\n2,b\n', failed=(2,), message="--no-quote"),
        delimited("stray_none.csv", 'id,a\n1,"open\n2,b"\n', "--no-quote", quoting=csv.QUOTE_NONE),
        delimited("apostrophes.csv", "id,a\n1,'x,y'\n2,\"z\"\n", "--quote", "'", quotechar="'"),
        delimited("stray.tsv", 'id\ta\n1\t"open\n2\tb "c"\n', "--quote", "", delimiter="\t", quoting=csv.QUOTE_NONE),
        delimited("quoted.tsv", 'id\ta\n1\t"x\ty"\n', delimiter="\t"),
        delimited("lines_in_quotes.csv", 'id,a\n1,"one\n\ntwo"\n2,b\n'),
        delimited("quoted_header.csv", '"id","a, ""b"""\n1,x\n'),
        delimited("empty_quotes.csv", 'id,a\n1,""\n2,\n3,x\n'),
    ]  # fmt: skip


def _encodings() -> list[Odd]:
    text = "id,größe,ort\n1,ä€,Köln\n2,b,Łódź\n"
    latin = "id,größe\n1,café\n2,b\n"
    return [
        delimited("bom.csv", "\ufeff" + text),
        delimited("utf16le.csv", "\ufeff" + text, encoding="utf-16-le"),
        delimited("utf16be.csv", "\ufeff" + text, encoding="utf-16-be"),
        delimited("utf16_given.csv", text, "--encoding", "utf-16-le", encoding="utf-16-le"),
        delimited("utf32.csv", "\ufeff" + text, encoding="utf-32-le"),
        delimited("latin1.csv", latin, "--encoding", "latin-1", encoding="latin-1"),
        delimited("cp1252.csv", "id,a\n1,€ “x”\n", "--encoding", "cp1252", encoding="cp1252"),
        delimited("cp1251.tsv", "id\ta\n1\tпривет\n", "--encoding", "cp1251", encoding="cp1251", delimiter="\t"),
        delimited("sjis.csv", "id,a\n1,日本語表\n", "--encoding", "shift_jis", encoding="shift_jis"),
        delimited(
            "latin_lines.csv", "id,a\n1,x\n2,?\n3,y\n", failed=(3,), message="--encoding cp1252",
            raw=b"id,a\n1,x\n2,caf\xe9\n3,y\n",
        ),
        delimited("nul.csv", "id,a\n1,x\0y\n2,z\n", failed=(2,), rows=[{"id": "2", "a": "z"}], message="NUL"),
    ]  # fmt: skip


def _ragged() -> list[Odd]:
    return [
        delimited("long.csv", "id,a\n1,x\n2,y,z\n3,w\n", failed=(3,), message="3 values, but the first line has 2"),
        delimited(
            "short.csv", "id,a,b\n1,x\n2,x,y\n3\n",
            message="2 lines have fewer values than there are columns, such as line 2 (2 of 3)",
        ),
        delimited(
            "twice.csv", "", message="duplicate column name 'a'", raw=b"id,a,a\n1,x,y\n",
            rows=[{"id": "1", "a": "x", "a_duplicated_0": "y"}],
        ),
        delimited("no_name.csv", "id,,b\n1,x,y\n"),
        delimited("odd_names.csv", 'id," a ","b,c"\n1,x,y\n'),
        delimited("id_with_comma.csv", '"a,id",b\n1,x\n', id=("a,id",)),
        delimited("id_with_blanks.csv", " id ,b\n1,x\n", id=(" id ",)),
        delimited("long_in_quotes.csv", 'id,a\n1,"x\ny",z\n2,w\n', rows=[{"id": "2", "a": "w"}], failed=(2,)),
    ]  # fmt: skip


def _codes() -> list[Odd]:
    late = "id,n\n" + "".join(f"{n},{n}\n" for n in range(2_000)) + "x,abc\ny,01\n"
    return [
        delimited("zeros.csv", "id,zip\n1,01234\n2,99999\n", message="'zip' is text"),
        delimited("prices.csv", "id,price\n1,1.10\n2,2.5\n", message="'price' is text"),
        delimited("prices_as_numbers.csv", "id,price\n1,1.10\n2,2.5\n", "--number", "price",
                  rows=[{"id": "1", "price": "1.1"}, {"id": "2", "price": "2.5"}]),
        delimited("exponents.csv", "id,a,b\n1,1e5,+1\n2,1E-3,-0\n"),
        delimited("scientific.csv", "id,p,n\n1,3.672717e-05,1e+05\n2,-5e-04,2\n3,1.7976931348623157e+308,3.5e-10\n",
                  rows=[{"id": "1", "p": "0.00003672717", "n": "100000.0"}, {"id": "2", "p": "-0.0005", "n": "2.0"},
                        {"id": "3", "p": "1.7976931348623157e+308", "n": "3.5e-10"}], message="'n' has fractions"),
        delimited("scientific_to_infinity.csv", "id,a,b,c\n1,1e+400,1.0e-05,12e-05\n2,0.5,0.5,0.5\n", message="'a' is text"),
        delimited("fractions.csv", "id,a\n1,1.5\n2,-0.25\n3,1e22\n"),
        delimited("mixed_numbers.csv", "id,a\n1,1\n2,2.5\n", message="fractions and integers"),
        delimited("huge.csv", f"id,n\n1,{HUGE}\n2,5\n"),
        delimited("beyond_double.csv", "id,n\n1,9007199254740993\n2,0.5\n"),
        delimited("booleans.csv", "id,a,b\n1,true,True\n2,false,False\n"),
        delimited("dates.csv", "id,day\n1,2024-01-02\n2,02/01/2024\n"),
        delimited("late.csv", late),
        delimited("formulas.csv", "id,n\n1,5\n2,#N/A\n" + "".join(f"{n},{n}\n" for n in range(3, 50)), message="--null '#N/A'"),
        delimited("nan.csv", "id,n\n1,nan\n2,1.5\n3,NaN\n4,inf\n"),
        delimited("blanks.csv", "id,n\n1, 5\n2,6 \n"),
        delimited("underscores.csv", "id,n\n1,1_000\n2,2\n"),
    ]  # fmt: skip


def _dialects() -> list[Odd]:
    return [
        delimited("semicolon.csv", "id;a\n1;x,y\n", "--separator", ";", delimiter=";"),
        delimited(
            "excel.csv", "id;n;p\n1;1,5;2,50\n2;-0,25;3,00\n", "--separator", ";", "--decimal-comma",
            rows=[{"id": "1", "n": "1.5", "p": "2,50"}, {"id": "2", "n": "-0.25", "p": "3,00"}], message="'p' is text",
        ),
        delimited("mysql.csv", "id,n\n1,\\N\n2,5\n", "--null", "\\N", rows=[{"id": "1", "n": None}, {"id": "2", "n": "5"}]),
        delimited("pipes.txt", "id|a\n1|x\n", "--separator", "|", delimiter="|"),
        delimited("two.txt", "id||a\n1||x\n", "--separator", "||", "--no-quote", rows=[{"id": "1", "a": "x"}]),
        delimited("headless.csv", "id,a\n1,x\n", "--columns", "id,a", raw=b"1,x\n"),
        delimited("composite.csv", "x,y,v\na|b,c,1\na,b|c,2\na\\,b,3\n", id=("x", "y")),
    ]  # fmt: skip


def _json() -> list[Odd]:
    late: list[Any] = [{"id": str(n), "a": n} for n in range(3_000)]
    deep = '{"id":"2","v":' + "[" * 1_200 + "]" * 1_200 + "}"
    return [
        lines("late.ndjson", *late, {"id": "x", "b": {"c": [1, None, 2]}}, {"id": "y", "b": {"d": "e"}}),
        lines("lists.ndjson", {"id": "1", "t": []}, {"id": "2", "t": ["v"]}, {"id": "3", "t": None}),
        lines("nested_lists.ndjson", {"id": "1", "t": [[]]}, {"id": "2", "t": [[{"a": []}], []]}, {"id": "3", "t": [[{"b": 1}]]}),
        lines("bool_number.ndjson", {"id": "1", "v": True}, {"id": "2", "v": 1}, {"id": "3", "v": None}),
        lines("anything.ndjson", {"id": "1", "v": "x"}, {"id": "2", "v": [1]}, {"id": "3", "v": {"a": 1.5}}),
        lines("deep_mix.ndjson", {"id": "1", "o": {"v": [True]}}, {"id": "2", "o": {"v": [1, "x"]}}, message="'o.v[]'"),
        lines("huge.ndjson", f'{{"id": "1", "v": {HUGE}}}', {"id": "2", "v": 1}),
        lines("huger.ndjson", f'{{"id": "1", "v": {HUGE * 2}}}', {"id": "2", "v": 1}),
        lines("digits.ndjson", '{"id": "1", "v": 0.1234567890123456789}', {"id": "2", "v": 1.5}),
        lines("large_and_fraction.ndjson", '{"id": "1", "v": 9007199254740993}', {"id": "2", "v": 0.5}),
        lines("number_ids.ndjson", {"id": 1, "v": 1}, {"id": "a", "v": 2}),
        lines("surrogate.ndjson", {"id": "1", "v": "x"}, failed={2: '{"id": "2", "v": "\\ud800"}'}, message="surrogate"),
        lines("pair.ndjson", '{"id": "1", "v": "\\ud83d\\ude00"}'),
        lines("long_numbers.ndjson", {"id": "1", "v": 2**60}, {"id": "2", "v": -(2**63)}, {"id": "3", "v": 5}),
        Odd("cut_word.json", b'[{"id": "1", "v": 1}, tru', (), [{"id": "1", "v": 1}], failed=(1,), message="may be truncated"),
        lines("crlf.ndjson", {"id": "1"}, {"id": "2", "v": "é"}, end="\r\n"),
        Odd("bom.ndjson", b"\xef\xbb\xbf" + b'{"id": "1", "v": 1}\n\n', (), [{"id": "1", "v": 1}]),
        lines("cr.ndjson", {"id": "1"}, {"id": "2", "v": 1}, end="\r"),
        lines("deep.ndjson", {"id": "1"}, {"id": "3", "v": None}, failed={2: deep}, message="deep"),
        lines("broken.ndjson", {"id": "1"}, {"id": "4"}, failed={2: "{2}", 3: "[1]"}, message="not valid JSON"),
        lines("twice.ndjson", {"id": "1"}, failed={2: '{"id": "2", "a": 1, "a": 2}'}, message="duplicate key 'a'"),
        lines("nan.ndjson", {"id": "1"}, failed={2: '{"id": "2", "v": NaN}', 3: '{"id": "3", "v": 1e999}'}),
        lines("bytes.ndjson", {"id": "1"}, failed={2: '{"id": "2", "v": "caf\udce9"}'}, message="not UTF-8"),
        lines("empty_objects.ndjson", {"id": "1", "v": {}}, {"id": "2", "v": {}}),
        Odd("array.json", json.dumps(late[:5], indent=1).encode(), (), late[:5]),
        Odd("array_in_lines.ndjson", json.dumps(late[:5]).encode(), (), late[:5]),
        Odd("spread.json", b'{"id": "1",\n "v": [1,\n2]}\n{"id": "2"}\n', (), [{"id": "1", "v": [1, 2]}, {"id": "2"}]),
        Odd("cut.json", b'[{"id": "1"},\n{"id": "2"},\n{"id": ', (), [{"id": "1"}, {"id": "2"}], (3,), "truncated"),
        Odd("utf16.ndjson", '\ufeff{"id": "1", "v": "é"}\n'.encode("utf-16-le"), (), [{"id": "1", "v": "é"}]),
    ]  # fmt: skip


def _packed() -> list[Odd]:
    return [
        delimited("a.csv.gz", PLAIN, pack=gzip.compress),
        delimited("b.csv.bz2", PLAIN, pack=bz2.compress),
        delimited("c.csv.xz", PLAIN, pack=lzma.compress),
        delimited("d.csv.zst", PLAIN, pack=zstandard),
        delimited("e.csv.zip", PLAIN, pack=lambda content: zipped(("e.csv", content))),
        delimited("two_members.csv.gz", PLAIN, pack=lambda content: gzip.compress(content[:9]) + gzip.compress(content[9:])),
        delimited("not_packed.csv.gz", PLAIN),
        Odd("g.ndjson.gz", gzip.compress(b'{"id": "1", "v": 1}\n'), (), [{"id": "1", "v": 1}]),
    ]  # fmt: skip


def _refused() -> list[Odd]:
    text = PLAIN.encode() * 500
    return [
        Odd("empty.csv", b"", message="is empty"),
        Odd("empty.csv.gz", gzip.compress(b""), message="is empty"),
        Odd("blank.ndjson", b"\n\n", message="is empty"),
        Odd("empty.parquet", b"", message="is empty"),
        Odd("cut.csv.gz", gzip.compress(text)[:-20], message="truncated"),
        Odd("cut.csv.zst", zstandard(text)[:-20], message="cannot be decompressed"),
        Odd("cut.csv.bz2", bz2.compress(text)[:-20], message="truncated"),
        Odd("cut.csv.xz", lzma.compress(text)[:-20], message="truncated"),
        Odd("damaged.csv.gz", gzip.compress(text)[:60] + b"x" * 60, message="cannot be decompressed"),
        Odd("two.csv.zip", zipped(("a.csv", b"id\n1\n"), ("b.csv", b"id\n2\n")), message="2 files"),
        Odd("header.csv", b"id,caf\xe9\n1,x\n", message="--encoding"),
        Odd("utf16.csv", PLAIN.encode("utf-16-le"), message="--encoding utf-16-le"),
        Odd("semicolons.csv", b"id;a\n1;x\n", message="--separator ';'"),
        Odd("cut.parquet", b"PAR1" + b"\0" * 50, message="cannot be read as Parquet"),
    ]
