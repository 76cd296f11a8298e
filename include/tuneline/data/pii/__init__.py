"""Find personal data and secrets, and put surrogates in their place."""
