"""Measure what scrubbing leaves behind, by made-up values planted in the rows.

Nothing here reads the detector's patterns or lists, and the detector reads nothing of this.
"""
