"""Find personal data and secrets: a token classifier, and patterns for what it does not know."""
