"""Shares of classes and of groups of similar prompts."""
