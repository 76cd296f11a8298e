"""The training phase: one module per checklist item."""
