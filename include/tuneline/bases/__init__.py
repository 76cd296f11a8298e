"""Base models in the store: `fetch_base` puts one there, `base_of` gives it to the other steps."""

from tuneline.bases.of_run import base_of

__all__ = ["base_of"]
