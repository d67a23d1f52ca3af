"""File formats, and inferring them from file names."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from entityframes.errors import SchemaError

Format = Literal["csv", "tsv", "ndjson", "json", "parquet", "ipc"]
FORMATS: tuple[str, ...] = get_args(Format)

_SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".dat": "csv",
    ".txt": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".json": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "ipc",
    ".ipc": "ipc",
    ".feather": "ipc",
}
_COMPRESSED = (".gz", ".zst", ".zstd", ".bz2", ".xz", ".zip")


def format_of(path: str | Path) -> Format:
    """The format of a file, inferred from its name.

    Raises:
        SchemaError: the format cannot be inferred.
    """
    name = Path(path)
    suffix = name.with_suffix("").suffix if name.suffix.lower() in _COMPRESSED else name.suffix
    found = _SUFFIXES.get(suffix.lower())
    if found is None:
        raise SchemaError(
            f"cannot infer the format of {name.name!r} from its name",
            advice=f"give one of {', '.join(FORMATS)} with --format",
        )
    return found
