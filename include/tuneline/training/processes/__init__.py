"""Several training processes on one machine or many."""
