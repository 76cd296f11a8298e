"""Measures of drift between prompts of production and of training."""
