"""Define what a model that recognises entities offers, whatever library runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tuneline.data.pii.hits import Hit


class EntityModel(Protocol):
    """A model that finds entities in texts.

    Attributes:
        ignored: its labels that name nothing that is looked for.
    """

    ignored: tuple[str, ...]

    def find(self, texts: Sequence[str]) -> list[list[Hit]]:
        """Return the entities of each text."""
        ...
