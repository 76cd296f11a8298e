"""The governance phase: one module for each item and helper step, and what they share."""
