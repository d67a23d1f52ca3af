"""Benchmarks: `python -m benchmarks NAME`. Contestants run side by side in one run and are compared only there."""
