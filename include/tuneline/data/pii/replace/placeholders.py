"""Replace personal data and secrets by typed placeholders, for texts that are logged as they come.

The scrubber is picklable and small: the process that uses it loads the model, once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path

from tuneline.config import DataConfig
from tuneline.data.pii.find.detector import Detector
from tuneline.data.pii.find.entities import Hit, Settings
from tuneline.data.pii.find.languages import MEASURED
from tuneline.data.pii.find.models import model_directories
from tuneline.data.pii.find.texts import Shared, map_turn
from tuneline.data.tables.rows import Message
from tuneline.errors import UserError

# System prompts that are remembered.
_SYSTEM_PROMPTS = 256


class PlaceholderScrubber:
    """A scrubber of conversations.

    Args:
        languages: languages of the conversations.
        models: directories of the models that find personal data; without one patterns alone do.

    Raises:
        UserError: for a language that the usual model does not know.
    """

    def __init__(self, languages: Sequence[str], models: Sequence[Path] = ()) -> None:
        if unknown := set(languages) - set(MEASURED):
            raise UserError(
                f"personal data is not found in {', '.join(sorted(unknown))}, but in "
                + ", ".join(MEASURED)
            )
        self._key = tuple(languages), tuple(models)

    def __call__(
        self, batch: Sequence[Sequence[Message]]
    ) -> list[tuple[list[Message], Counter[str]]]:
        """Return conversations with placeholders such as `[EMAIL_ADDRESS]`, and their number.

        An answer that is JSON stays JSON, unless personal data is in the name of a field.
        """
        # Many requests have the same long system prompt, which is read once.
        said = [[m for m in messages if m["role"] != "system"] for messages in batch]
        found = _detector(*self._key).rows(said, Shared())
        return [self._row(*row) for row in zip(batch, found, strict=True)]

    def _row(
        self, messages: Sequence[Message], found: Mapping[str, Sequence[Hit]]
    ) -> tuple[list[Message], Counter[str]]:
        counts: Counter[str] = Counter()
        turns = []
        for message in messages:
            content = message["content"]
            hits = _in_system(*self._key, content) if message["role"] == "system" else found
            turn = map_turn(message, partial(_replaced, hits, counts), None)
            # Inside a JSON answer only values were visited.
            if (content := turn["content"]).lstrip().startswith("{"):
                shapes = {content: _detector(*self._key).shapes(content)}
                turn = {"role": turn["role"], "content": _replaced(shapes, counts, content)}
            turns.append(turn)
        return turns, counts


def make_placeholder_scrubber(languages: Sequence[str], *, model: bool) -> PlaceholderScrubber:
    """Make a scrubber with the model that the data phase uses, or with patterns alone.

    Raises:
        UserError: if the model can't be had, or nothing is known of a language.
    """
    config = DataConfig(source="log", pii_ner=model)
    return PlaceholderScrubber(languages, model_directories(config))


@cache
def _detector(languages: tuple[str, ...], models: tuple[Path, ...]) -> Detector:
    return Detector(Settings(languages=languages, models=models))


@lru_cache(maxsize=_SYSTEM_PROMPTS)
def _in_system(
    languages: tuple[str, ...], models: tuple[Path, ...], text: str
) -> Mapping[str, Sequence[Hit]]:
    """Return what is found in a system prompt."""
    turn: Message = {"role": "system", "content": text}
    return _detector(languages, models).rows([[turn]], Shared())[0]


def _replaced(found: Mapping[str, Sequence[Hit]], counts: Counter[str], text: str) -> str:
    parts, at = [], 0
    for hit in found.get(text, ()):
        parts += [text[at : hit.start], f"[{hit.entity}]"]
        at = hit.end
        counts[hit.entity] += 1
    return "".join([*parts, text[at:]])
