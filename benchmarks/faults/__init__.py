"""Planted faults: data and models of other teams, with the verdicts that are right for them."""
