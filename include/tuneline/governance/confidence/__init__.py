"""The confidence threshold of a release, set on validation rows."""
