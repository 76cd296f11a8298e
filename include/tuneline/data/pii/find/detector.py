"""Find personal data in rows: by models, by patterns, and by the question that a turn answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tuneline.data.pii.find.entities import Hit, Settings
from tuneline.data.pii.find.texts import Shared
from tuneline.data.tables.rows import Message


class Detector:
    """A detector of personal data.

    Args:
        settings: what to look for.

    Attributes:
        custom_entities: types that the user's own recognisers find.
        ignored_labels: labels of the models that name nothing that is looked for.

    Raises:
        UserError: if a model or recogniser can't be loaded.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.custom_entities: tuple[str, ...] = ()
        self.ignored_labels: tuple[str, ...] = ()

    def shapes(self, text: str) -> tuple[Hit, ...]:
        """Find what has a form or a cue of its own; no model is asked."""
        raise NotImplementedError

    def rows(
        self, batch: Sequence[Sequence[Message]], shared: Shared
    ) -> list[Mapping[str, tuple[Hit, ...]]]:
        """Find everything in some rows, each distinct text of which a model reads once.

        Args:
            batch: turns of each row.
            shared: parts that rows share, which no model reads.

        Returns:
            For each row its texts (see `texts_of`) in which something was found, with the hits:
            in order, without overlaps, of wanted types, without what is allowed.
        """
        raise NotImplementedError
