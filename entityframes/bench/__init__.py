"""Benchmark of N+1 queries against batches, on your own database."""

from entityframes.bench.n_plus_one import chart, n_plus_one

__all__ = ["chart", "n_plus_one"]
