"""Replace personal data and secrets by typed placeholders, for texts that are logged as they come.

The scrubber is picklable and small: the process that uses it loads the model, once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from tuneline.data.pii.find.detector import Detector
from tuneline.data.pii.find.entities import Hit, Settings
from tuneline.data.pii.find.texts import Shared, map_turn
from tuneline.data.pii.languages import PATTERN_LANGUAGES
from tuneline.data.tables.rows import Message
from tuneline.errors import UserError


class PlaceholderScrubber:
    """A scrubber of conversations.

    Args:
        languages: languages of the conversations.
        models: directories of the models that find personal data; without one patterns alone do.

    Raises:
        UserError: if there are no patterns for a language.
    """

    def __init__(self, languages: Sequence[str], models: Sequence[Path] = ()) -> None:
        if unknown := set(languages) - PATTERN_LANGUAGES:
            raise UserError(
                f"there are no patterns of personal data for {', '.join(sorted(unknown))}; there "
                f"are for {', '.join(sorted(PATTERN_LANGUAGES))}"
            )
        self._key = tuple(languages), tuple(models)

    def __call__(
        self, batch: Sequence[Sequence[Message]]
    ) -> list[tuple[list[Message], Counter[str]]]:
        """Return conversations with placeholders such as `[EMAIL_ADDRESS]`, and their number.

        An answer that is JSON stays JSON, unless personal data is in the name of a field.
        """
        detector = _detector(*self._key)
        results = []
        for messages, found in zip(batch, detector.rows(batch, Shared()), strict=True):
            counts: Counter[str] = Counter()

            def read(text: str, found=found, counts=counts) -> str:
                return _replaced(text, found.get(text, ()), counts)

            turns = [map_turn(message, read, None) for message in messages]
            # Also over a whole JSON answer: inside it only values were visited.
            again = [
                _replaced(turn["content"], detector.shapes(turn["content"]), counts)
                if turn["content"].lstrip().startswith("{")
                else turn["content"]
                for turn in turns
            ]
            scrubbed: list[Message] = [
                {"role": turn["role"], "content": content}
                for turn, content in zip(turns, again, strict=True)
            ]
            results.append((scrubbed, counts))
        return results


@cache
def _detector(languages: tuple[str, ...], models: tuple[Path, ...]) -> Detector:
    return Detector(Settings(languages=languages, models=models))


def _replaced(text: str, hits: Iterable[Hit], counts: Counter[str]) -> str:
    parts, at = [], 0
    for hit in hits:
        parts += [text[at : hit.start], f"[{hit.entity}]"]
        at = hit.end
        counts[hit.entity] += 1
    return "".join([*parts, text[at:]])
