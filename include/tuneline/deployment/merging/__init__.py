"""Compare a merged checkpoint with base and adapter."""
