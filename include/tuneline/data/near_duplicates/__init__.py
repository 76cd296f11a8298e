"""Find equal and similar texts, and split rows without a leak."""
