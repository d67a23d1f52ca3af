"""The result of a run, put together from the outcomes of its partitions."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl
import pyarrow as pa

from entityframes.errors import EntityFramesError
from entityframes.results import UNRESOLVED, UPSERT_STATUSES, OutcomeLog, RunResult
from entityframes.visible import visible

#: The metadata of the schema of a table of outcomes.
_FACTS = b"entityframes"

#: The columns of `DistributedResult.partitions`.
PARTITIONS = pl.Schema(
    {
        "partition": pl.String(),
        "rows": pl.Int64(),
        "attempts": pl.UInt32(),
        "resumed": pl.Int64(),
        "seconds": pl.Float64(),
        "node": pl.String(),
        "error": pl.String(),
    }
)


@dataclass(frozen=True, repr=False)
class DistributedResult(RunResult):
    """The result of a run of several partitions.

    Attributes:
        counts: number of rows by status, with an entry for each status, as in `UpsertResult`.
        batches: number of batches of the attempts that completed their partition.
        elapsed: seconds.
        partitions: one row per partition, in the order of their names: ``partition`` String, ``rows`` Int64 (null if
            none were read), ``attempts`` UInt32, ``resumed`` Int64 (batches in the ledger that earlier attempts wrote),
            ``seconds`` Float64 (of the last attempt), ``node`` String, ``error`` String (why it was not read to its
            end, else null).
        notes: sentences on what the counts do not show.

    Examples:
        >>> import uuid
        >>> from entityframes import distributed
        >>> run = str(uuid.uuid4())
        >>> parts = {"a": ef.ids("note", ["a", None]), "b": ef.ids("note", ["b"])}
        >>> written = [
        ...     distributed.upsert_partition(part, "tasks.duckdb", run_id=run, partition=name)
        ...     for name, part in parts.items()
        ... ]
        >>> result = distributed.combine(written)
        >>> result.counts["created"], result.partitions["rows"].to_list()
        (2, [2, 1])
        >>> result.failed.select("partition", "row", "rule").rows()
        [('a', 1, 'null_key')]
        >>> distributed.close()
    """

    partitions: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=PARTITIONS), compare=False)

    @property
    def outcomes(self) -> pl.DataFrame:
        """One row for each row in conflict, failed, cancelled or unknown, and for each partition with an error.

        Columns: ``row`` UInt32 (position in its partition, null for an error of the partition), ``partition`` String,
        the columns of the key, and ``status``, ``batch_id``, ``error_kind``, ``rule``, ``error``, ``sqlstate`` String;
        ordered by partition and row. More than 100,000 rows are kept in a temporary file, which is removed with the
        result.

        Examples:
            >>> from entityframes import distributed
            >>> distributed.combine([]).outcomes.height
            0
        """
        return self._log.collect().sort("partition", "row", nulls_last=True)

    @property
    def ok(self) -> bool:
        """Whether no row is failed, cancelled, in conflict or unknown, and every partition was read to its end.

        Examples:
            >>> from entityframes import distributed
            >>> distributed.combine([]).ok
            True
        """
        return super().ok and self.partitions["error"].null_count() == self.partitions.height

    def raise_for_failures(self) -> None:
        """Raise an exception unless `ok`.

        Raises:
            EntityFramesError: rows failed, were cancelled, are in conflict or unknown, or a partition was not read to
                its end. The message counts them and quotes the first ones.

        Examples:
            >>> from entityframes import distributed
            >>> distributed.combine([]).raise_for_failures()
        """
        if lines := self._ended():
            raise EntityFramesError(lines[0] + "; see result.partitions and result.outcomes")
        super().raise_for_failures()

    def to_dict(self) -> dict[str, Any]:
        """As for `UpsertResult`, with ``partitions``, and ``partitions_with_errors``.

        Examples:
            >>> from entityframes import distributed
            >>> distributed.combine([]).to_dict()["partitions"]
            0
        """
        bad = self.partitions.height - self.partitions["error"].null_count()
        return {**super().to_dict(), "partitions": self.partitions.height, "partitions_with_errors": bad}

    def _ended(self) -> list[str]:
        """A line on the partitions that were not read to their end."""
        bad = self.partitions.drop_nulls("error")
        if bad.is_empty():
            return []
        first = bad.row(0, named=True)
        return [
            f"{bad.height:,} of {self.partitions.height:,} partitions not read to their end; "
            f"first: {visible(first['partition'])}: {visible(first['error'])}"
        ]

    def _remark(self) -> str:
        return f"; {self.partitions.height:,} partitions"

    def __repr__(self) -> str:
        return "\n".join([super().__repr__(), *self._ended()])

    def _lines(self) -> list[str]:
        return [*super()._lines(), *self._ended()]


class Collector:
    """Collects the outcomes of the partitions of a run.

    Args:
        run_id: the id of the run; None for that of the first partition.
        every: whether to keep the outcomes of all rows that have one; otherwise those of unresolved rows.
    """

    def __init__(self, run_id: str | None = None, *, every: bool = False) -> None:
        self._every = every
        self._started = time.perf_counter()
        #: The number of rows by status, which goes on changing.
        self.counts = dict.fromkeys(UPSERT_STATUSES, 0)
        self._run_id, self._batches = run_id, 0
        self._partitions: list[dict[str, Any]] = []
        self._log: OutcomeLog | None = None
        self.notes: list[str] = []

    def add(self, table: pa.Table, attempts: int = 1) -> None:
        """Add the outcomes of a partition that `upsert_partition` returned."""
        lines = pl.DataFrame(table)
        facts = json.loads((table.schema.metadata or {}).get(_FACTS, b"{}"))
        counted = lines.drop_nulls("rows")
        for status, rows in counted.group_by("status").agg(pl.col("rows").sum()).iter_rows():
            self.counts[status] += rows
        ended = lines.filter(pl.col("rows").is_null())
        self._run_id = self._run_id or facts.get("run_id")
        self._batches += facts.get("batches", 0)
        name = facts.get("partition") or (lines["partition"][0] if lines.height else "")
        self._partitions.append(
            {
                "partition": name,
                "rows": int(counted["rows"].sum()) if counted.height or ended.is_empty() else None,
                "attempts": attempts,
                "resumed": facts.get("resumed"),
                "seconds": facts.get("seconds"),
                "node": facts.get("node"),
                "error": ended["error"][0] if ended.height else None,
            }
        )
        single = lines.filter(pl.col("row").is_not_null() | pl.col("rows").is_null())
        self._keep(single if self._every else single.filter(pl.col("status").is_in(UNRESOLVED)))

    def ended(
        self,
        partition: str,
        error: str,
        attempts: int,
        *,
        status: str = "failed",
        kind: str | None = "connection",
        rule: str | None = "task",
    ) -> None:
        """Add a partition of which no attempt has returned outcomes."""
        self._partitions.append({"partition": partition, "attempts": attempts, "error": error})
        line = {"partition": partition, "status": status, "error_kind": kind, "rule": rule, "error": error}
        self._keep(pl.DataFrame([line], schema=dict.fromkeys(line, pl.String)))

    def _keep(self, lines: pl.DataFrame) -> None:
        if self._log is None:
            keys = lines.columns[2 : lines.columns.index("status")] if "row" in lines.columns else []
            schema = {"row": pl.UInt32(), "partition": pl.String(), **{name: lines.schema[name] for name in keys}}
            texts = ("status", "batch_id", "error_kind", "rule", "error", "sqlstate")
            self._log = OutcomeLog(schema=pl.Schema(schema | dict.fromkeys(texts, pl.String())))
            self._log.run_id = self._run_id
        self._log.append(_aligned(lines, self._log.schema))

    def result(self) -> DistributedResult:
        """The result so far."""
        if self._log is None:
            self._keep(pl.DataFrame(schema={"row": pl.UInt32, "partition": pl.String, "status": pl.String}))
        assert self._log is not None
        partitions = pl.DataFrame(self._partitions, schema=PARTITIONS).sort("partition", maintain_order=True)
        elapsed = time.perf_counter() - self._started
        return DistributedResult(
            dict(self.counts), self._batches, elapsed, self._log, notes=tuple(self.notes), partitions=partitions
        )


def _aligned(lines: pl.DataFrame, schema: pl.Schema) -> pl.DataFrame:
    """The lines with the columns of the first ones; a partition that could not be opened has other key columns."""
    return lines.select(
        (pl.col(name) if name in lines.columns else pl.lit(None)).cast(dtype).alias(name)
        for name, dtype in schema.items()
    )


def combine(tables: Iterable[pa.Table]) -> DistributedResult:
    """Put the outcomes of the partitions of a run together.

    Args:
        tables: what `upsert_partition` returned for each partition; read one by one. Without the metadata of their
            schema, which Spark drops, a table may have several partitions, the columns ``seconds``, ``node`` and
            ``resumed`` of these are null, and the number of batches is 0.

    Returns:
        DistributedResult, whose ``elapsed`` is the sum of the seconds of the partitions.

    Examples:
        >>> import uuid
        >>> from entityframes import distributed
        >>> run = str(uuid.uuid4())
        >>> table = distributed.upsert_partition(ef.ids("note", ["a"]), "tasks.duckdb", run_id=run, partition="first")
        >>> distributed.combine([table]).counts["created"]
        1
        >>> distributed.close()
    """
    collector = Collector()
    for table in tables:
        whole = _FACTS in (table.schema.metadata or {})
        parts = [table] if whole else pl.DataFrame(table).partition_by("partition", maintain_order=True)
        for part in parts:
            collector.add(part if whole else part.to_arrow())
    result = collector.result()
    return replace(result, elapsed=float(result.partitions["seconds"].sum()))
