"""Writing frames to files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from entityframes.errors import SchemaError
from entityframes.files.formats import format_of
from entityframes.files.opening import check_name


def check_writable(schema: Mapping[str, pl.DataType], path: str | Path, file_format: str | None = None) -> str:
    """The format of a file to write a frame to.

    Raises:
        SchemaError: the format cannot be inferred, or it cannot represent a column.
    """
    check_name(path)
    kind = file_format or format_of(path)
    suffix = Path(path).suffix.lower()
    if suffix in (".bz2", ".xz", ".zip"):
        raise SchemaError(f"{Path(path).name}: cannot write this compression format", advice="use .gz or .zst")
    binary = [name for name, dtype in schema.items() if _holds(dtype, pl.Binary)]
    if kind in ("csv", "tsv"):
        unfit = [name for name, dtype in schema.items() if dtype.is_nested() or dtype == pl.Binary]
        better = "Parquet or Arrow IPC" if binary else "Parquet, NDJSON or Arrow IPC"
    else:
        unfit = binary if kind in ("ndjson", "json") else []
        better = "Parquet or Arrow IPC"
    if unfit:
        shown = ", ".join(map(repr, unfit[:10])) + (", ..." if len(unfit) > 10 else "")
        raise SchemaError(f"{kind} cannot represent the columns {shown}", advice=f"write {better} (--format)")
    return kind


def _holds(dtype: Any, kind: Any) -> bool:
    """Whether a dtype is of a kind, or contains one."""
    if isinstance(dtype, pl.List | pl.Array):
        return _holds(dtype.inner, kind)
    if isinstance(dtype, pl.Struct):
        return any(_holds(field.dtype, kind) for field in dtype.fields)
    return bool(dtype == kind)


def nonfinite(frame: pl.DataFrame) -> list[str]:
    """The columns with NaN or infinities, which JSON cannot represent."""
    floats = [column for column in frame.get_columns() if column.dtype.is_float()]
    return [column.name for column in floats if not column.is_finite().all()]


def write_file(frame: pl.DataFrame, path: str | Path, file_format: str | None = None) -> None:
    """Write a frame; CSV, TSV, NDJSON and JSON are compressed if the name ends in ``.gz`` or ``.zst``.

    Raises:
        SchemaError: the format cannot be inferred, or it cannot represent a column: nested ones in CSV and TSV, binary
            ones in all text formats.
    """
    kind = check_writable(frame.schema, path, file_format)
    suffix = Path(path).suffix.lower()
    compression: Any = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}.get(suffix, "uncompressed")
    if kind == "parquet":
        frame.write_parquet(path)
    elif kind == "ipc":
        frame.write_ipc(path)
    elif kind == "ndjson":
        frame.write_ndjson(path, compression=compression)
    elif kind == "json":
        _write_json(frame, Path(path), suffix)
    else:
        frame.write_csv(path, separator="\t" if kind == "tsv" else ",", compression=compression)


def _write_json(frame: pl.DataFrame, path: Path, suffix: str) -> None:
    import pyarrow as pa

    lines = frame.write_ndjson().encode().rstrip(b"\n").replace(b"\n", b",\n")
    codec = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}.get(suffix)
    with pa.output_stream(str(path), compression=codec) as file:
        file.write(b"[" + lines + b"]\n")
