"""Long runs of random faults: ``python -m tests.torture --minutes 2 --seed 1``."""
