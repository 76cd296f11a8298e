"""The blind review: its draw of pairs, its counts, and the statistics that decide it."""
