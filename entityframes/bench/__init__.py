"""N+1 against batch, measured on one's own database."""

from entityframes.bench.n_plus_one import chart, n_plus_one

__all__ = ["chart", "n_plus_one"]
