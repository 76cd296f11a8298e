"""Show rows as the model will see them."""
