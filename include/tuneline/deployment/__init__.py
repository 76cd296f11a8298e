"""The deployment phase: one module per checklist item."""
