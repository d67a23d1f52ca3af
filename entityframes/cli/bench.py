"""The bench command: a loop over entities (N+1) against one batch, on the database of the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from entityframes.cli.command import Command
from entityframes.cli.common import json_option, print_frame, print_origin, progress_option, url_option
from entityframes.cli.files import check_output
from entityframes.cli.output import tell
from entityframes.visible import visible


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
@click.option(
    "--latency-ms", type=click.FloatRange(0), default=0.0, help="Milliseconds added to each round trip (PostgreSQL)."
)
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True, help="Number of measurements.")
@click.option("--out", type=click.Path(dir_okay=False), help="Write the results, in any format of export")
@click.option("--chart", type=click.Path(dir_okay=False), help="Write a chart: .svg, .png, .html or .json.")
@progress_option
@json_option
@url_option
def bench(
    sizes: Sequence[int], latency_ms: float, repeat: int, out: str | None, chart: str | None, progress: Any,
    as_json: bool, url: str | None,
) -> None:  # fmt: skip
    """Compare a loop over entities (N+1) with one batch.

    It runs in a temporary namespace of the store's database, which is removed afterwards; nothing else is changed. The
    times are medians in seconds. To a pipe it prints CSV, with --json NDJSON.
    """
    from entityframes.bench.n_plus_one import check_chart, n_plus_one, save_chart
    from entityframes.files import write_file

    if out:
        check_output("--out", out)
    if chart:
        check_chart(chart)
    print_origin(url)
    measured = n_plus_one(url, sizes or (100, 1_000), latency_ms=latency_ms, repeat=repeat, progress=progress)
    for path, write in ((out, write_file), (chart, save_chart)):
        if path:
            write(measured, path)
            tell(f"wrote {visible(path)}", err=True)
    if not out or as_json:
        print_frame(measured, as_json)
