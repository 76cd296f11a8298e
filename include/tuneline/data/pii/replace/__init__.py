"""Replace personal data by surrogates or placeholders, and look for what was left."""
