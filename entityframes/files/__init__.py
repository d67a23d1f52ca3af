"""Tabular files: CSV, TSV, NDJSON, JSON, Parquet and Arrow IPC, plain or compressed."""

from entityframes.files.formats import FORMATS, Format, format_of
from entityframes.files.opening import check_name, expanded
from entityframes.files.reading import Rows, TextOptions, read_files, reading_errors
from entityframes.files.writing import check_writable, nonfinite, write_file

__all__ = [
    "FORMATS", "Format", "Rows", "TextOptions", "check_name", "check_writable", "expanded", "format_of", "nonfinite",
    "read_files", "reading_errors", "write_file",
]  # fmt: skip
