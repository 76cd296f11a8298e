"""Trials of the benchmarks over texts."""
