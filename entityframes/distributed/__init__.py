"""Upserts that are spread over processes and machines: one partition at a time, for Ray, Dask, Spark or any other."""

from entityframes.distributed.core import Entities, Rows, close, upsert_partition
from entityframes.distributed.result import DistributedResult, combine

__all__ = ["DistributedResult", "Entities", "Rows", "close", "combine", "upsert_partition"]


def __dir__() -> list[str]:
    """The public names and no modules: what completion offers."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
