"""Faster kernels for training on a CPU, equal to the plain path."""
