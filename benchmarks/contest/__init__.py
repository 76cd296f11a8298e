"""Measure systems in turn, each in a separate process, and report the results."""
