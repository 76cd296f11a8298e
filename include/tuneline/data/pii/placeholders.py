"""Replace personal data and secrets that have a shape (tier 1) by typed placeholders.

This is the scrubber for texts that come one at a time and must not wait: no model of names is
loaded, and a text without digits, `@` or a key word costs microseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tuneline.data.pii.languages import PATTERN_LANGUAGES
from tuneline.data.pii.patterns import find
from tuneline.data.pii.turns import map_turn
from tuneline.data.tables.rows import Message
from tuneline.errors import UserError


class PlaceholderScrubber:
    """A scrubber of conversations by patterns and checksums.

    Args:
        languages: languages whose patterns apply in addition to the English ones.

    Raises:
        UserError: if there are no patterns for a language.
    """

    def __init__(self, languages: Sequence[str]) -> None:
        if unknown := set(languages) - PATTERN_LANGUAGES:
            raise UserError(
                f"there are no patterns of personal data for {', '.join(sorted(unknown))}; there "
                f"are for {', '.join(sorted(PATTERN_LANGUAGES))}"
            )
        self._languages = tuple(languages)

    def __call__(self, messages: Sequence[Message]) -> tuple[list[Message], Counter[str]]:
        """Return the conversation with placeholders such as `[EMAIL_ADDRESS]`, and their number.

        An answer that is JSON stays JSON, unless personal data is in the name of a field.
        """
        counts: Counter[str] = Counter()

        def change(text: str) -> str:
            return self._replaced(text, counts)

        scrubbed: list[Message] = []
        for message in messages:
            turn = message
            if message["role"] == "assistant" and message["content"].lstrip().startswith("{"):
                turn = map_turn(message, change, None)
            # Also over a whole JSON answer: inside it only values were visited.
            scrubbed.append({"role": turn["role"], "content": change(turn["content"])})
        return scrubbed, counts

    def _replaced(self, text: str, counts: Counter[str]) -> str:
        parts, at = [], 0
        for hit in find(text, self._languages):
            parts += [text[at : hit.start], f"[{hit.entity}]"]
            at = hit.end
            counts[hit.entity] += 1
        return "".join([*parts, text[at:]]) if parts else text
