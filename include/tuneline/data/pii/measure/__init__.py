"""Measure what scrubbing leaves behind, by made-up values planted in the rows."""
