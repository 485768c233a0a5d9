"""What runners/benchmark.py measures and writes."""
