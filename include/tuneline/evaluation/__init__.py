"""The evaluation phase: one module per checklist item."""
