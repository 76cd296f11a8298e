"""Render conversations with the model's template and count their tokens."""
