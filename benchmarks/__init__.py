"""Benchmarks: `python -m benchmarks NAME`. Contestants run side by side; compare figures of the same run only."""
