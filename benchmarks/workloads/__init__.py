"""Rows and models that benchmarks work on."""
