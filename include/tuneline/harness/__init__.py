"""Licences of a run and of its engine."""
