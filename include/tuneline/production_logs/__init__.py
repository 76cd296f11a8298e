"""Requests of production in a store: their columns, one partition a day, writing and reading."""
