"""Canaries: made-up personal data, planted into rows of the dataset to measure what leaks.

Nothing here reads the detector's patterns or word lists, and the detector reads nothing of this.
"""
