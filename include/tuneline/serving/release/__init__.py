"""Find the released model and serve it."""
