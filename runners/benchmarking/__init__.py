"""Benchmarks of speed, memory and start-up: what runners/benchmark.py measures and writes."""
