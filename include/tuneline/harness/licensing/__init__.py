"""Licences of base model, data and packages, with the rule or the person that decides on each."""
