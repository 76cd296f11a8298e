"""Counting tokens where the upstream did not: aborted answers, missing usage."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tuneline.errors import UserError

# Byte-level BPE vocabularies average about four bytes of English text to a token.
_BYTES_PER_TOKEN = 4
# A chat template wraps a message in about four tokens (two markers, role, newline)
# and opens the answer with three; an estimate, and marked as one.
_PER_MESSAGE = 4
_PER_ANSWER = 3


class TokenCounter:
    """Counts by a `tokenizer.json`, or by bytes when there is none.

    Args:
        path: the tokenizer file, or None.

    Raises:
        UserError: the file is missing or no tokenizer.
    """

    def __init__(self, path: Path | None) -> None:
        self._tokenizer: Any = None
        if path is not None:
            from tokenizers import Tokenizer

            try:
                self._tokenizer = Tokenizer.from_file(str(path))
            except Exception as error:  # the library raises bare Exception
                raise UserError(f"{path}: not a tokenizer.json: {error}") from None

    def text(self, text: str, *, chunks: int = 0) -> int:
        """Tokens of a text.

        Args:
            text: what was written.
            chunks: in how many stream chunks it came. Engines send about a token a
                chunk, which is a better guess than bytes when there is no tokenizer.
        """
        if not text:
            return 0
        whole = text.encode("utf-8", "replace")
        if self._tokenizer is not None:
            encoding = self._tokenizer.encode(whole.decode("utf-8"), add_special_tokens=False)
            return len(encoding.ids)
        return chunks or -(-len(whole) // _BYTES_PER_TOKEN)

    def messages(self, messages: Iterable[Any]) -> int:
        """Tokens of a chat prompt: its texts and about what a template adds."""
        total = _PER_ANSWER
        for message in messages:
            total += _PER_MESSAGE + self.text("\n".join(message_texts(message)))
        return total


def message_texts(message: Any) -> list[str]:
    """The texts of a chat message: a string, or the text parts of a list of parts."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return [content]
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        return [text for text in texts if isinstance(text, str)]
    return []
