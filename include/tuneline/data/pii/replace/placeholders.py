"""Replace personal data and secrets by typed placeholders, for texts that are logged as they come.

The scrubber is picklable and small: the process that uses it loads the model, once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path

from tuneline.config import DataConfig
from tuneline.data.pii.find.detector import Detector
from tuneline.data.pii.find.entities import Hit, Settings
from tuneline.data.pii.find.languages import MODEL_LANGUAGES
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
        if unknown := set(languages) - MODEL_LANGUAGES:
            raise UserError(
                f"personal data is not found in {', '.join(sorted(unknown))}, but in "
                + ", ".join(sorted(MODEL_LANGUAGES))
            )
        self._key = tuple(languages), tuple(models)

    def __call__(
        self, batch: Sequence[Sequence[Message]]
    ) -> list[tuple[list[Message], Counter[str]]]:
        """Return conversations with placeholders such as `[EMAIL_ADDRESS]`, and their number.

        An answer that is JSON stays JSON, unless personal data is in the name of a field.
        """
        detector = _detector(*self._key)
        said = [[m for m in messages if m["role"] != "system"] for messages in batch]
        results = []
        for messages, own, found in zip(batch, said, detector.rows(said, Shared()), strict=True):
            turns, counts = _scrubbed(own, found, detector)
            left = iter(turns)
            # Many requests have the same long system prompt, which is read once.
            every = [
                self._system(m["content"]) if m["role"] == "system" else (next(left), {})
                for m in messages
            ]
            for _, more in every:
                counts.update(more)
            results.append(([turn for turn, _ in every], counts))
        return results

    def _system(self, text: str) -> tuple[Message, Counter[str]]:
        return _system_turn(*self._key, text)


def _scrubbed(
    messages: Sequence[Message], found: Mapping[str, Sequence[Hit]], detector: Detector
) -> tuple[list[Message], Counter[str]]:
    counts: Counter[str] = Counter()

    def read(text: str) -> str:
        return _replaced(text, found.get(text, ()), counts)

    turns = [map_turn(message, read, None) for message in messages]
    for number, turn in enumerate(turns):
        # Inside a JSON answer only values were visited.
        if turn["content"].lstrip().startswith("{"):
            content = _replaced(turn["content"], detector.shapes(turn["content"]), counts)
            turns[number] = {"role": turn["role"], "content": content}
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
def _system_turn(
    languages: tuple[str, ...], models: tuple[Path, ...], text: str
) -> tuple[Message, Counter[str]]:
    detector = _detector(languages, models)
    turn: Message = {"role": "system", "content": text}
    (found,) = detector.rows([[turn]], Shared())
    (scrubbed,), counts = _scrubbed([turn], found, detector)
    return scrubbed, counts


def _replaced(text: str, hits: Iterable[Hit], counts: Counter[str]) -> str:
    parts, at = [], 0
    for hit in hits:
        parts += [text[at : hit.start], f"[{hit.entity}]"]
        at = hit.end
        counts[hit.entity] += 1
    return "".join([*parts, text[at:]])
