"""Benchmarks against peers: a flat file is one benchmark of `tuneline bench`."""
