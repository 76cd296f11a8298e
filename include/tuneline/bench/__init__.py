"""Benchmarks against peers: speed with quality beside it, measured in turn in one run."""
