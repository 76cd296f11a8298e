"""Distances between prompts of production and of training."""
