"""Reading and writing files of rows: CSV, TSV, NDJSON, Parquet and Arrow IPC, plain or compressed."""

from __future__ import annotations

import glob
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import polars as pl

from entityframes.errors import SchemaError

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
    #: Rows that dtypes are inferred from.
    infer_rows: int = INFER_ROWS


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
    paths = [path for source in sources for path in expanded(source, spool)]
    formats = {file_format or format_of(path) for path in paths}
    if len(formats) > 1:
        raise SchemaError(f"the files have different formats ({', '.join(sorted(formats))}): import them one by one")
    [kind] = formats
    if kind in ("csv", "tsv"):
        return _scan_text(paths, options, "\t" if kind == "tsv" else ",")
    if kind == "ndjson":
        return pl.scan_ndjson(paths, infer_schema_length=options.infer_rows)
    return pl.scan_parquet(paths, glob=False) if kind == "parquet" else pl.scan_ipc(paths, glob=False)


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
    overrides = dict.fromkeys(options.text, pl.String)
    return pl.scan_csv(paths, infer_schema_length=options.infer_rows, schema_overrides=overrides, **reading)


def expanded(source: str, spool: Path | None = None) -> list[str]:
    """The paths that a source names: a path, a pattern, or ``-``, which is read into a file in `spool`."""
    if source == "-":
        folder = spool or Path(tempfile.mkdtemp(prefix="entityframes-"))
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
        return [file.name]
    if Path(source).exists():
        return [source]
    found = sorted(glob.glob(source, recursive=True))
    if not found:
        raise SchemaError(f"no such file: {source}")
    return found


def write_file(frame: pl.DataFrame, path: str | Path, file_format: str | None = None) -> None:
    """Write a frame; a name that ends in ``.gz`` or ``.zst`` compresses CSV, TSV and NDJSON.

    Raises:
        SchemaError: the format is not known, or it has no place for a nested column (CSV, TSV).
    """
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
