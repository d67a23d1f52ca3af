"""The bench command: a loop over entities (N+1) against one batch, on the database of the store."""

from __future__ import annotations

from collections.abc import Sequence

import click

from entityframes.cli.command import Command
from entityframes.cli.common import json_option, print_frame, print_origin, store_options


@click.command(
    cls=Command,
    examples="""
entityframes bench --entities 50 --repeat 1
entityframes bench --entities 50 --entities 100 --repeat 1 --out speed.csv
entityframes bench --entities 50 --repeat 1 --json
""",
)
@click.option(
    "--entities",
    "sizes",
    multiple=True,
    type=click.IntRange(min=1),
    help="Number of entities; may be repeated.  [default: 100 and 1000]",
)
@click.option("--latency-ms", default=0.0, help="Milliseconds added to each round trip (PostgreSQL).")
@click.option("--repeat", default=3, show_default=True, help="Number of measurements.")
@click.option("--chart", type=click.Path(dir_okay=False), help="Write a chart: .svg, .png or .html.")
@json_option
@store_options
def bench(
    sizes: Sequence[int], latency_ms: float, repeat: int, chart: str | None, as_json: bool, url: str | None,
    namespace: str,
) -> None:  # fmt: skip
    """Compare a loop over entities (N+1) with one batch.

    It runs in a temporary namespace of the store's database, which is removed afterwards; nothing else is changed.
    """
    from entityframes.bench.n_plus_one import n_plus_one, save_chart

    print_origin(url)
    measured = n_plus_one(url, sizes or (100, 1_000), latency_ms=latency_ms, repeat=repeat)
    if chart:
        save_chart(measured, chart)
    print_frame(measured, as_json)
