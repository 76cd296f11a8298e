"""The table of latency over concurrency, and its plot."""
