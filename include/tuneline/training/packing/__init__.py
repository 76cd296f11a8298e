"""Several rows in one sequence, without padding, and without one row seeing another."""
