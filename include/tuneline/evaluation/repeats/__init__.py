"""What `determinism` repeats, where answers part, and which setting mends it."""
