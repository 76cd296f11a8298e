"""Predict, measure and limit the memory of a training step."""
