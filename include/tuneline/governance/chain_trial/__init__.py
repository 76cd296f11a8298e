"""Faults planted in the chain that is served."""
