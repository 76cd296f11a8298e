"""HTML pages of runs and releases."""
