"""Guests: datasets of other shapes, and small models of other families, to try the project on."""
