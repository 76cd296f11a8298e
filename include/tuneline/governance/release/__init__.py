"""The manifest of a model version, its release log and the release pointer."""
