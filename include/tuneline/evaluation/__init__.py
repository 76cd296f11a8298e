"""The evaluation phase: the candidate against the base, one module per item."""
