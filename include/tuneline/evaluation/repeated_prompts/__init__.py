"""What `determinism` repeats, and where answers part."""
