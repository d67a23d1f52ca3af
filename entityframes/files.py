"""Reading and writing files of rows: CSV, TSV, NDJSON, Parquet and Arrow IPC, plain or compressed."""

from __future__ import annotations

import glob
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import polars as pl

from entityframes.errors import SchemaError
from entityframes.utf8 import printable

Format = Literal["csv", "tsv", "ndjson", "parquet", "ipc"]
FORMATS: tuple[str, ...] = get_args(Format)

_SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".dat": "csv",
    ".txt": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "ipc",
    ".ipc": "ipc",
    ".feather": "ipc",
}
_COMPRESSED = (".gz", ".zst", ".zstd")

#: Rows that a dtype is inferred from.
INFER_ROWS = 100_000


@dataclass(frozen=True)
class TextOptions:
    """How to read CSV and TSV."""

    #: The columns of a file without a header line, in order.
    columns: Sequence[str] | None = None
    #: What stands between two values; None is a comma, or a tab in TSV.
    separator: str | None = None
    #: Texts that stand for null, besides the empty one.
    nulls: Sequence[str] = ()
    #: Columns that are kept as text whatever they look like, such as ids with leading zeros.
    text: Sequence[str] = ()
    #: The same for columns that a file may lack.
    text_if_there: Sequence[str] = ()
    #: Rows that dtypes are inferred from.
    infer_rows: int = INFER_ROWS
    #: The dtypes that columns of these names should have: they are read so where that takes nothing from a value.
    known: Mapping[str, pl.DataType] = field(default_factory=dict)


def format_of(path: str | Path) -> Format:
    """The format that a file name tells.

    Raises:
        SchemaError: it tells none.
    """
    name = Path(path)
    suffix = name.with_suffix("").suffix if name.suffix.lower() in _COMPRESSED else name.suffix
    found = _SUFFIXES.get(suffix.lower())
    if found is None:
        raise SchemaError(f"{name.name!r} tells no format by its name: give one of {', '.join(FORMATS)}")
    return found


def scan_files(
    sources: Sequence[str],
    file_format: str | None = None,
    options: TextOptions | None = None,
    *,
    spool: Path | None = None,
) -> pl.LazyFrame:
    """A LazyFrame over files.

    Args:
        sources: paths, patterns such as ``data/*.csv.gz``, or ``-`` for standard input.
        file_format: one of `FORMATS`; None tells it by the name.
        options: how to read CSV and TSV.
        spool: a folder for what comes from standard input, which may not fit into memory.

    Raises:
        SchemaError: a pattern matches nothing, or the format is not known.
    """
    options = options or TextOptions()
    paths = expanded(sources, file_format, spool)
    formats = {file_format or format_of(path) for path in paths}
    if len(formats) > 1:
        raise SchemaError(f"the files have different formats ({', '.join(sorted(formats))}): import them one by one")
    [kind] = formats
    if kind in ("csv", "tsv"):
        return _scan_text(paths, options, "\t" if kind == "tsv" else ",")
    if kind == "ndjson":
        rows = pl.scan_ndjson(paths, infer_schema_length=options.infer_rows)
    else:
        rows = pl.scan_parquet(paths, glob=False) if kind == "parquet" else pl.scan_ipc(paths, glob=False)
    return rows.cast(_as_known(rows, options.known))  # type: ignore[arg-type]


def _scan_text(paths: list[str], options: TextOptions, separator: str) -> pl.LazyFrame:
    reading: dict[str, Any] = {
        "separator": options.separator or separator,
        "has_header": options.columns is None,
        "null_values": ["", *options.nulls],
        "glob": False,
    }
    names, *others = [pl.scan_csv(path, infer_schema=False, **reading).collect_schema().names() for path in paths]
    unlike = [path for path, other in zip(paths[1:], others, strict=True) if other != names]
    if unlike:
        raise SchemaError(
            f"{Path(unlike[0]).name} has other columns than {Path(paths[0]).name}: import files of one kind at a time, "
            "or name the columns of files without a header line"
        )
    if options.columns is not None:
        if len(options.columns) != len(names):
            raise SchemaError(
                f"the file has {len(names)} columns, and {len(options.columns)} names were given for them"
            )
        names = list(options.columns)
        reading["new_columns"] = names
    missing = [name for name in options.text if name not in names]
    if missing:
        header = "" if options.columns else " in its first line; a file without a header line needs --columns"
        found = ", ".join(map(repr, names))
        raise SchemaError(f"no column {', '.join(map(repr, missing))}; the file has {found}{header}")
    as_text = [*options.text, *(name for name in options.text_if_there if name in names)]
    reading |= {"infer_schema_length": options.infer_rows, "schema_overrides": dict.fromkeys(as_text, pl.String)}
    rows = pl.scan_csv(paths, **reading)
    if not options.known:
        return rows
    known = {name: dtype for name, dtype in options.known.items() if name in names and name not in options.text}
    # What looks like a number here is the text that it is where the column is known as text.
    looks = rows.collect_schema()
    text = [name for name, dtype in known.items() if dtype == pl.String and looks[name] != pl.String]
    reading["schema_overrides"] |= {**dict.fromkeys(text, pl.String), **_as_known(rows, known)}
    return pl.scan_csv(paths, **reading)


def _as_known(rows: pl.LazyFrame, known: Mapping[str, pl.DataType]) -> dict[str, pl.DataType]:
    """The columns that can have the dtype they are known with, and have not: whole numbers, and columns of nulls."""
    schema = rows.collect_schema()
    other = {name: dtype for name, dtype in known.items() if name in schema and schema[name] != dtype}
    whole = {name: dtype for name, dtype in other.items() if schema[name].is_integer() and dtype.is_float()}
    texts = [name for name, dtype in other.items() if schema[name] == pl.String and not dtype.is_nested()]
    if not texts:
        return whole
    values = rows.select(pl.col(texts).count()).collect().row(0, named=True)
    return whole | {name: other[name] for name in texts if not values[name]}


def expanded(sources: Sequence[str], file_format: str | None = None, spool: Path | None = None) -> list[str]:
    """The paths that sources name: a path, a pattern, or ``-``, which is read into a file in `spool`.

    Raises:
        SchemaError: a pattern matches nothing; standard input comes twice, or without its format.
    """
    if "-" in sources and file_format is None:
        raise SchemaError(f"standard input has no name that tells its format: give one of {', '.join(FORMATS)}")
    if sources.count("-") > 1:
        raise SchemaError("standard input can be read once")
    paths: list[str] = []
    for source in sources:
        if source == "-":
            path = (spool or Path(tempfile.mkdtemp(prefix="entityframes-"))) / "standard input"
            with path.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
            paths.append(str(path))
        elif Path(source).exists():
            paths.append(source)
        elif found := sorted(glob.glob(source, recursive=True)):
            paths += found
        else:
            raise SchemaError(f"no such file: {printable(source)}")
    for name in paths:
        check_name(name)
    return paths


def check_name(path: str | Path) -> None:
    """Refuse a name that Polars cannot open.

    Raises:
        SchemaError: it holds bytes that are not UTF-8.
    """
    if printable(str(path)) != str(path):
        raise SchemaError(f"{printable(str(path))}: the name of the file is not UTF-8: rename it")


def write_file(frame: pl.DataFrame, path: str | Path, file_format: str | None = None) -> None:
    """Write a frame; a name that ends in ``.gz`` or ``.zst`` compresses CSV, TSV and NDJSON.

    Raises:
        SchemaError: the format is not known, or it has no place for a nested column (CSV, TSV).
    """
    check_name(path)
    kind = file_format or format_of(path)
    suffix = Path(path).suffix.lower()
    compression: Any = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}.get(suffix, "uncompressed")
    if kind == "parquet":
        frame.write_parquet(path)
    elif kind == "ipc":
        frame.write_ipc(path)
    elif kind == "ndjson":
        frame.write_ndjson(path, compression=compression)
    else:
        nested = [name for name, dtype in frame.schema.items() if dtype.is_nested() or dtype == pl.Binary]
        if nested:
            raise SchemaError(
                f"columns {', '.join(map(repr, nested))} have no place in {kind}: write Parquet, NDJSON or Arrow IPC"
            )
        frame.write_csv(path, separator="\t" if kind == "tsv" else ",", compression=compression)
