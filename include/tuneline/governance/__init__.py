"""The governance phase: one module per checklist item."""
