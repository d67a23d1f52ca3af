"""Keeps measurements, one row each, with everything needed to interpret them later; medians, ratios, table, chart."""

from __future__ import annotations

import datetime as dt
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import polars as pl

#: The contestant that all others are compared with.
OURS = "entityframes"

_VERSIONS = (
    "entityframes", "polars", "pyarrow", "duckdb", "adbc-driver-postgresql", "psycopg", "sqlalchemy", "pangres", "dlt",
    "sqlite-utils", "cocoindex", "dbmerge", "ray",
)  # fmt: skip

#: Defaults of optional columns.
_ABSENT = {
    "latency_ms": 0.0, "round_trips": None, "peak_mb": None, "process_seconds": None, "outcome": None,
    "core_seconds": None,
}  # fmt: skip

#: Measurements with equal values in these columns were made side by side and are comparable.
GROUP = ["database", "phase", "rows", "latency_ms"]


def peak_mb() -> float:
    """The peak memory of this process (Linux). `getrusage` would include the memory of its parent."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("utf-8").splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def core_seconds() -> float:
    """The time that all cores of the machine have worked (Linux), so also for the database and for anything else."""
    fields = Path("/proc/stat").read_text("utf-8").partition("\n")[0].split()[1:]
    user, nice, system, _idle, _waiting, *interrupts = map(int, fields[:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


class Measurements:
    """The measurements of one run of one benchmark."""

    def __init__(self, benchmark: str, seed: int) -> None:
        self.benchmark = benchmark
        self.seed = seed
        self._rows: list[dict[str, Any]] = []

    def add(self, contestant: str, *, database: str, phase: str, rows: int, seconds: float, **more: Any) -> None:
        """Record one measurement.

        `more` may contain latency_ms, round_trips, peak_mb, process_seconds (including process start and exit), outcome
        (what happened, for measurements that are not about time), and further columns of a benchmark.
        """
        row = {"contestant": contestant, "database": database, "phase": phase, "rows": rows, "seconds": seconds}
        self._rows.append(_ABSENT | row | more)
        print(f"  {contestant:34} {database:10} {phase:18} {rows:>10,} rows  {seconds:8.3f} s", flush=True)

    @contextmanager
    def timed(self, contestant: str, **where: Any) -> Iterator[dict[str, Any]]:
        """Time a block; what the block puts into the yielded dict is added to the measurement."""
        more: dict[str, Any] = {}
        start, worked = time.perf_counter(), core_seconds()
        yield more
        seconds, cores = time.perf_counter() - start, core_seconds() - worked
        self.add(contestant, seconds=seconds, core_seconds=cores, **where, **more)

    def frame(self) -> pl.DataFrame:
        """One row for each measurement."""
        return pl.DataFrame(self._rows, infer_schema_length=None).with_columns(
            benchmark=pl.lit(self.benchmark), seed=pl.lit(self.seed), measured_at=pl.lit(dt.datetime.now(dt.UTC)),
            machine=pl.lit(f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"),
            versions=pl.lit(_versions()),
        )  # fmt: skip

    def finish(self, folder: Path) -> pl.DataFrame:
        """Write Parquet, SVG and Markdown files into the folder, print the table, and return it."""
        folder.mkdir(parents=True, exist_ok=True)
        measured = self.frame()
        measured.write_parquet(folder / f"{self.benchmark}.parquet")
        table = summary(measured)
        with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True,
                       fmt_str_lengths=60, float_precision=3, tbl_width_chars=160):  # fmt: skip
            print(f"\n{measured['machine'][0]}; {_versions()}; medians, ratio to {OURS} in the same run")
            print(table)
            outcomes = measured.filter(pl.col("outcome").is_not_null())
            if outcomes.height:
                print(outcomes.select("database", "phase", "contestant", "outcome").unique(maintain_order=True))
        chart(table, folder / f"{self.benchmark}.svg")
        (folder / f"{self.benchmark}.md").write_text(markdown(table), "utf-8")
        print(f"written: {folder / self.benchmark}.parquet, .svg and .md")
        return table


def chosen(name: str, only: str | None) -> bool:
    """Whether a contestant is selected: `only` is a comma-separated list of substrings of names, or None for all."""
    return only is None or any(part in name for part in only.split(","))


def summary(measured: pl.DataFrame) -> pl.DataFrame:
    """The median of each contestant and its ratio to our median, for each group."""
    timed = measured.filter(pl.col("outcome").is_null())
    medians = timed.group_by(*GROUP, "contestant", maintain_order=True).agg(
        pl.col("seconds", "process_seconds", "core_seconds").median(),
        pl.col("round_trips", "peak_mb").max(),
        repeats=pl.len(),
    )
    ours = medians.filter(pl.col("contestant") == OURS).select(*GROUP, ours="seconds")
    whole = [] if medians["process_seconds"].null_count() == medians.height else ["process_seconds"]
    return (
        medians.join(ours, on=GROUP, how="left", maintain_order="left", nulls_equal=True)
        .with_columns(
            ratio=pl.col("seconds") / pl.col("ours"),
            us_per_row=pl.col("seconds") / pl.col("rows") * 1e6,
            rows_per_second=(pl.col("rows") / pl.col("seconds")).round().cast(pl.Int64),
            # A measurement may be shorter than the clock of the cores.
            rows_per_core_second=pl.when(pl.col("core_seconds") > 0.1)
            .then(pl.col("rows") / pl.col("core_seconds"))
            .round()
            .cast(pl.Int64),
        )
        # Keep the order in which the groups were first measured.
        .with_row_index("place")
        .with_columns(pl.col("place").min().over(GROUP))
        .sort("place", "seconds")
        .select(
            *GROUP,
            "contestant",
            "seconds",
            "ratio",
            *whole,
            "us_per_row",
            "rows_per_second",
            "rows_per_core_second",
            "round_trips",
            "peak_mb",
            "repeats",
        )
    )


def markdown(table: pl.DataFrame) -> str:
    """The medians as Markdown, one table for each database and size: in seconds, and as multiples of ours."""
    added = pl.when(pl.col("latency_ms") > 0).then(pl.format(", +{} ms", "latency_ms")).otherwise(pl.lit(""))
    trips = pl.when(pl.col("round_trips").is_not_null()).then(pl.format(", {} round trips", "round_trips"))
    seconds = pl.col("seconds").round_sig_figs(3)
    times = pl.when(pl.col("ratio") != 1).then(pl.format(" ({}x)", pl.col("ratio").round_sig_figs(2)))
    shown = table.with_columns(
        column=pl.format("{}{}", "phase", added),
        cell=pl.concat_str(pl.format("{} s", seconds), times.fill_null(""), trips.fill_null("")),
    )
    parts = []
    for (database, rows), group in shown.group_by("database", "rows", maintain_order=True):
        wide = group.pivot("column", index="contestant", values="cell").fill_null("")
        parts.append(f"{database}, {rows:,} rows\n")
        lines = [wide.columns, ["-"] * wide.width, *wide.rows()]
        parts.append("\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n")
    return "\n".join(parts)


def chart(table: pl.DataFrame, path: Path) -> None:
    """A bar chart of the medians, one panel for each group, ours in a different color."""
    import altair as alt

    rows_shown = pl.col("rows").map_elements("{:,}".format, return_dtype=pl.String)
    added = pl.when(pl.col("latency_ms") > 0).then(pl.format(", +{} ms", "latency_ms")).otherwise(pl.lit(""))
    titled = table.with_columns(
        group=pl.format("{}, {}, {} rows{}", "database", "phase", rows_shown, added),
        label=pl.format("{} s", pl.col("seconds").round_sig_figs(3)),
        ours=pl.col("contestant").str.starts_with(OURS),
    )
    panels = []
    for (group,), rows in titled.group_by("group", maintain_order=True):
        bars = alt.Chart(rows).encode(
            y=alt.Y("contestant:N", sort=rows["contestant"].to_list(), title=None, axis=alt.Axis(labelLimit=260)),
            x=alt.X("seconds:Q", title="seconds", scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=5)),
        )
        colored = bars.mark_bar().encode(color=alt.condition("datum.ours", alt.value("#0b7a75"), alt.value("#b8b8b8")))
        panels.append(
            (colored + bars.mark_text(align="left", dx=4).encode(text="label")).properties(title=str(group), width=360)
        )
    alt.hconcat(*[alt.vconcat(*panels[at::2]) for at in range(min(2, len(panels)))]).save(str(path))


def _versions() -> str:
    found = []
    for name in _VERSIONS:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
