"""Recognise personal data by a token-classification or GLiNER model that an address names."""
