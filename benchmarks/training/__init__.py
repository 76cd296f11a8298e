"""Trials of the training benchmark."""
