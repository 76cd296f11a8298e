"""The files that steps leave for each other, each named once."""
