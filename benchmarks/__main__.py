"""`python -m benchmarks NAME`: run a benchmark, print its table, write its measurements and its chart."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import click

from benchmarks.measure import Measurements

NAMES = (
    "n_plus_one",
    "upsert",
    "table",
    "lookup",
    "embed",
    "scale",
    "scale_out",
    "directory",
    "costs",
    "passages",
    "search",
    "interrupt",
    "guard",
)


@click.command()
@click.argument("name", type=click.Choice(NAMES))
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--rows", multiple=True, type=int, help="Entities; may be repeated.  [default: set by the benchmark]")
@click.option("--repeat", default=3, show_default=True, help="Repetitions of each measurement.")
@click.option("--latency-ms", multiple=True, type=float, help="Added to each round trip (n_plus_one); may be repeated.")
@click.option("--postgres", metavar="URL", help="A scratch PostgreSQL server.  [default: start one for the run]")
@click.option("--only", help="Comma-separated substrings of contestant names (upsert: or databases) to run.")
@click.option("--seed", default=7, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results"), show_default=True)
def main(
    name: str, folders: tuple[Path, ...], rows: tuple[int, ...], repeat: int, latency_ms: tuple[float, ...],
    postgres: str | None, only: str | None, seed: int, out: Path,
) -> None:  # fmt: skip
    """Run benchmark NAME.

    n_plus_one, upsert, table, lookup, embed, scale, scale_out, directory, costs, passages (with FOLDERS of
    documentation), search, interrupt (the button of a notebook) or guard (ratios).
    """
    measurements = Measurements(name, seed)
    more = {"n_plus_one": {"latencies": list(latency_ms)}, "passages": {"folders": folders}}.get(name, {})
    try:
        import_module(f"benchmarks.{name}").run(
            measurements, rows=list(rows), repeat=repeat, postgres=postgres, only=only, **more
        )
    finally:
        measurements.finish(out)


if __name__ == "__main__":
    main()
