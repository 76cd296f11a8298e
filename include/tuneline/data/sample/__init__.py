"""The sample dataset with its planted faults."""
