"""Benchmark of N+1 queries against batches, in a scratch namespace of your own database."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl

from entityframes.bench.wire import WireProxy
from entityframes.engines.url import Address, parse_url
from entityframes.progress import Progress, Reporter
from entityframes.store import EntityStore, connect

#: The loop that queries one entity at a time, and the single call that replaces it.
N_PLUS_ONE, BATCH = "N+1", "batch"
#: The formats of charts.
CHARTS = (".svg", ".png", ".html", ".json")


def n_plus_one(
    url: Address | None = None,
    entities: Sequence[int] = (100, 1_000),
    *,
    latency_ms: float = 0.0,
    repeat: int = 3,
    progress: Progress = None,
) -> pl.DataFrame:
    """Time the sync of a number of entities, half of which are stored and a quarter changed, with both methods.

    Runs in a temporary namespace, which is dropped at the end.

    Args:
        url: the address of the store, as for `connect`.
        entities: the numbers of entities to measure.
        latency_ms: milliseconds of latency added to each round trip; PostgreSQL only.
        repeat: the number of measurements of each method; the methods alternate.
        progress: as for `EntityStore.upsert`, counted in measurements.

    Returns:
        ``way`` (the method: "N+1" or "batch"), ``entities`` Int64, ``latency_ms`` Float64, ``seconds`` Float64
        (median), ``round_trips`` Int64 (counted on the wire; null on DuckDB, which has none), ``speedup`` Float64 (time
        of N+1 divided by time of batch); one row for each size and method, ordered by size.

    Raises:
        ConnectError: the store cannot be opened.
        ValueError: a number is too small, or `latency_ms` is given for DuckDB.
    """
    location = parse_url(url)
    _check(location.engine, entities, latency_ms, repeat)
    measured: list[dict[str, Any]] = []
    wire = WireProxy(location.target, latency_ms=latency_ms) if location.engine == "postgresql" else nullcontext()
    ways = ((N_PLUS_ONE, sync_one_by_one), (BATCH, sync_in_batches))
    with (
        wire as proxy,
        _scratch(proxy.url if proxy else location) as store,
        Reporter(progress, len(entities) * repeat * len(ways), what="bench", unit="measurements") as reporter,
    ):
        for size, _, (way, sync) in product(entities, range(repeat), ways):
            measured.append(_measure(store, way, sync, size, proxy) | {"latency_ms": latency_ms})
            reporter.advance(1)
    return _medians(pl.DataFrame(measured))


def _check(engine: str, entities: Sequence[int], latency_ms: float, repeat: int) -> None:
    """Check the arguments before anything is measured.

    Raises:
        ValueError: they cannot be measured.
    """
    if not entities or min(entities) < 1 or repeat < 1:
        raise ValueError(f"entities and repeat must be at least 1, got {entities} and {repeat}")
    if latency_ms < 0 or (latency_ms and engine == "duckdb"):
        raise ValueError(f"latency_ms must be 0 or more, and 0 for DuckDB, which has no round trips, got {latency_ms}")


def sync_one_by_one(store: EntityStore, frame: pl.DataFrame) -> None:
    """The N+1 loop: get each entity, and insert or update it if it is missing or differs."""
    for row in frame.iter_rows(named=True):
        stored = store.get_entity(row["entity_type"], row["id"])
        if stored is None or stored["content"] != row["content"]:
            store.upsert_entity(row["entity_type"], row["id"], row["content"], row["metadata"])


def sync_in_batches(store: EntityStore, frame: pl.DataFrame) -> None:
    """The same sync in one call."""
    store.upsert(frame, progress=False).raise_for_failures()


def chart(measured: pl.DataFrame) -> Any:
    """An Altair chart of time, and of round trips if they were counted, by size and method.

    It has no background, and its text is gray, so that it can be read on a light and on a dark page.

    Raises:
        ValueError: Altair is not installed.
    """
    try:
        import altair as alt
    except ImportError:
        raise ValueError("charts need Altair: pip install altair vl-convert-python") from None

    sizes = measured["entities"].unique().to_list()
    logarithmic = alt.Scale(type="log", nice=False, padding=10)

    def panel(column: str, title: str) -> Any:
        ticks = pl.Series([base * 10.0**power for power in range(-5, 8) for base in (1, 3)])
        values = measured[column].cast(pl.Float64).drop_nulls()
        inside = ticks.filter(ticks.is_between(values.min(), values.max())).to_list()
        return (
            alt.Chart(measured, width=320, height=240)
            .mark_line(point=True)
            .encode(
                x=alt.X("entities:Q", scale=logarithmic, title="entities", axis=alt.Axis(values=sizes, format=",")),
                y=alt.Y(f"{column}:Q", scale=logarithmic, title=title, axis=alt.Axis(values=inside, format=",~g")),
                color=alt.Color("way:N", title=None, sort=[N_PLUS_ONE, BATCH]),
            )
        )

    seconds = panel("seconds", "seconds")
    counted = measured["round_trips"].null_count() < measured.height
    whole = seconds | panel("round_trips", "round trips") if counted else seconds
    text, lines = "#808080", "rgba(128,128,128,0.35)"
    return (
        whole.configure(background="transparent")
        .configure_axis(labelColor=text, titleColor=text, gridColor=lines, domainColor=lines, tickColor=lines)
        .configure_legend(labelColor=text)
        .configure_view(stroke=None)
    )


def check_chart(path: str | os.PathLike[str]) -> None:
    """Check that a chart can be written to a file.

    Raises:
        ValueError: a package is missing, or the format is unknown.
        FileNotFoundError: there is no such folder.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in CHARTS:
        raise ValueError(f"{path}: no chart of this format: use {', '.join(CHARTS)}")
    needed = ("altair", "vl_convert") if suffix in (".svg", ".png") else ("altair",)
    if any(find_spec(name) is None for name in needed):
        raise ValueError("charts need Altair: install altair and vl-convert-python")
    if not Path(path).resolve().parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder does not exist")


def save_chart(measured: pl.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write the chart as SVG, PNG, HTML or JSON, depending on the file extension."""
    chart(measured).save(str(Path(path)))


def sample(size: int, version: int) -> pl.DataFrame:
    """Entities ``0 ... size - 1``, each with about 500 bytes of content and some metadata."""
    number = pl.int_range(size)
    return pl.select(number.alias("n")).select(
        entity_type=pl.lit("bench"),
        id=pl.format("entity-{}", "n"),
        content=pl.format("version {} of {}: {}", pl.lit(version), "n", pl.lit("words of a note " * 30)),
        metadata=pl.struct("n", title=pl.format("note {}", "n")),
    )


@contextmanager
def _scratch(url: Address) -> Iterator[EntityStore]:
    with connect(url, namespace=f"entityframes_bench_{secrets.token_hex(4)}") as store:
        try:
            yield store
        finally:
            store._engine.drop()


def _measure(
    store: EntityStore, way: str, sync: Callable[[EntityStore, pl.DataFrame], None], size: int, proxy: WireProxy | None
) -> dict[str, Any]:
    frame = sample(size, version=1)
    store.delete(frame.select("entity_type", "id"), progress=False)
    # Half of the entities are stored, and half of those are unchanged.
    store.upsert(pl.concat([frame[: size // 4], sample(size // 2, version=0)[size // 4 :]]), progress=False)
    if proxy is not None:
        proxy.reset()
    started = time.perf_counter()
    sync(store, frame)
    seconds = time.perf_counter() - started
    return {
        "way": way, "entities": size, "seconds": seconds, "round_trips": proxy.round_trips if proxy else None,
    }  # fmt: skip


def _medians(measured: pl.DataFrame) -> pl.DataFrame:
    measured = measured.with_columns(pl.col("latency_ms").cast(pl.Float64))
    medians = measured.group_by("way", "entities", "latency_ms", maintain_order=True).agg(
        pl.col("seconds").median(), pl.col("round_trips").cast(pl.Int64).max()
    )
    slow = pl.col("seconds").filter(pl.col("way") == N_PLUS_ONE).first().over("entities")
    return medians.with_columns(speedup=slow / pl.col("seconds"))
