"""The production log and traces."""
