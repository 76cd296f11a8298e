"""API keys: what they may do, and what they have spent."""
