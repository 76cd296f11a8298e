"""Replace personal data and secrets by typed placeholders, for texts that are logged as they come.

The scrubber is picklable and small: the process that uses it loads the model, once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from tuneline.config import DataConfig
from tuneline.data.pii.find.detector import Detector
from tuneline.data.pii.find.entities import Hit, Settings
from tuneline.data.pii.find.languages import MEASURED
from tuneline.data.pii.find.models import model_directories
from tuneline.data.pii.find.texts import Shared, map_turn
from tuneline.data.pii.replace.scrubber import replace_hits
from tuneline.data.tables.rows import Message
from tuneline.errors import UserError

# System prompts that are remembered.
_SYSTEM_PROMPTS = 256


@dataclass(frozen=True)
class PlaceholderScrubber:
    """A scrubber of conversations.

    Attributes:
        languages: languages of the conversations.
        models: directories of the models that find personal data; without one patterns alone do.

    Raises:
        UserError: for a language that the usual model does not know.
    """

    languages: tuple[str, ...]
    models: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if unknown := set(self.languages) - set(MEASURED):
            raise UserError(
                f"personal data is not found in {', '.join(sorted(unknown))}, but in "
                + ", ".join(MEASURED)
            )

    def __call__(
        self, batch: Sequence[Sequence[Message]]
    ) -> list[tuple[list[Message], Counter[str]]]:
        """Return conversations with placeholders such as `[EMAIL_ADDRESS]`, and their number.

        An answer that is JSON stays JSON, unless personal data is in the name of a field.
        """
        # Many requests have the same long system prompt, which is read once.
        said = [[m for m in messages if m["role"] != "system"] for messages in batch]
        found = _detector(self).rows(said, Shared())
        return [self._row(*row) for row in zip(batch, found, strict=True)]

    def _row(
        self, messages: Sequence[Message], found: Mapping[str, Sequence[Hit]]
    ) -> tuple[list[Message], Counter[str]]:
        counts: Counter[str] = Counter()

        def change(text: str, hits: Sequence[Hit]) -> str:
            return replace_hits(text, hits, lambda entity, _: f"[{entity}]", counts)

        turns: list[Message] = []
        for message in messages:
            if message["role"] == "system":
                text = message["content"]
                content = change(text, _in_system(self, text))
            else:
                turn = map_turn(message, lambda text: change(text, found.get(text, ())), None)
                content = turn["content"]
            # Inside a JSON answer only values were visited.
            if content.lstrip().startswith("{"):
                content = change(content, _detector(self).shapes(content))
            turns.append({"role": message["role"], "content": content})
        return turns, counts


def make_placeholder_scrubber(languages: Sequence[str], *, model: bool) -> PlaceholderScrubber:
    """Make a scrubber with the model that the data phase uses, or with patterns alone.

    Raises:
        UserError: if the model can't be had, or nothing is known of a language.
    """
    config = DataConfig(source="log", pii_ner=model)
    return PlaceholderScrubber(tuple(languages), model_directories(config))


@cache
def _detector(scrubber: PlaceholderScrubber) -> Detector:
    return Detector(Settings(languages=scrubber.languages, models=scrubber.models))


@lru_cache(maxsize=_SYSTEM_PROMPTS)
def _in_system(scrubber: PlaceholderScrubber, text: str) -> Sequence[Hit]:
    turn: Message = {"role": "system", "content": text}
    return _detector(scrubber).rows([[turn]], Shared())[0].get(text, ())
