"""The data phase: one module per checklist item."""
