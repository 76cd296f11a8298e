"""Token counts where the upstream gave none: aborted answers, missing usage."""

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
    """Counts tokens by a `tokenizer.json`, or by bytes without one.

    Args:
        path: the tokenizer file, or None.

    Raises:
        UserError: if the file is missing or not a tokenizer.
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
        """Count the tokens of a text.

        Args:
            text: the text.
            chunks: number of stream chunks that it came in. Engines send about one token a
                chunk, which is a better guess than bytes without a tokenizer.
        """
        if not text:
            return 0
        whole = text.encode("utf-8", "replace")
        if self._tokenizer is not None:
            encoding = self._tokenizer.encode(whole.decode("utf-8"), add_special_tokens=False)
            return len(encoding.ids)
        return chunks or -(-len(whole) // _BYTES_PER_TOKEN)

    def messages(self, messages: Iterable[Any]) -> int:
        """Count the tokens of a chat prompt, with an estimate for the template."""
        total = _PER_ANSWER
        for message in messages:
            total += _PER_MESSAGE + self.text("\n".join(message_texts(message)))
        return total

    def prompts(self, prompts: Iterable[Any]) -> int:
        """Count the tokens of prompts without a template: texts, or lists of token ids."""
        return sum(self.text(one) if isinstance(one, str) else len(one) for one in prompts)


def message_texts(message: Any) -> list[str]:
    """Return the texts of a chat message: its string, or the text parts of its list of parts."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return [content]
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        return [text for text in texts if isinstance(text, str)]
    return []
