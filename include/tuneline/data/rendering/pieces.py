"""Encode rendered rows piece by piece, so that text that many rows share is encoded once.

A fast tokenizer first splits a text at its added tokens (`added_vocabulary.rs` of `tokenizers`);
all later stages see each part alone. So a text that is cut right before such a token has the ids of
its pieces; the tokenizer itself is tested for it. While one batch is encoded, which releases the
interpreter's lock, the next one is prepared. On 100,000 chats this saves a quarter of the CPU time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from os.path import commonprefix
from typing import Any, TypeVar

Value = TypeVar("Value")

# Encoding a thousand rows at a time is fastest (larger batches only cost memory).
BATCH = 1000
# Pieces that came up again are remembered up to this many characters in all.
_REMEMBERED_CHARS = 1 << 22
# Neighbours put around every added token to test that cuts change nothing.
_PROBES = ("a", " b", "c ", "\n", "\n\nd", "0 1", "é", " ", "<", "it's", "")


class PieceEncoder:
    """Encodes texts for one `tokenizers.Tokenizer`; nothing is added, nothing is cut off."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._reset()
        self._cuts = cutting_points(backend)
        if self._cuts is not None and not self._cuts_are_sound():
            self._cuts = None

    def cut(self, text: str) -> list[str]:
        """Cut a text into pieces: each but the first starts with an added token."""
        if self._cuts is None:
            return [text]
        pattern, cut = self._cuts
        starts = [match.start() for match in pattern.finditer(text) if match[0] in cut]
        if not starts:
            return [text]
        if starts[0]:
            starts.insert(0, 0)
        ends = [*starts[1:], len(text)]
        return [text[start:end] for start, end in zip(starts, ends, strict=True)]

    def encode(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the token ids of texts; an iterator is read while earlier texts are encoded."""
        return [
            parts[0] if len(parts) == 1 else list(chain.from_iterable(parts))
            for parts in self._parts(texts, lambda encoding: encoding.ids)
        ]

    def encode_whole(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of texts that are not cut."""
        self._reset()
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def count(self, texts: Iterable[str]) -> list[int]:
        """Count the tokens of texts; an iterator is read while earlier texts are encoded."""
        return [sum(parts) for parts in self._parts(texts, len)]

    def _parts(
        self, texts: Iterable[str], value_of: Callable[[Any], Value]
    ) -> Iterator[list[Value]]:
        """Return a value of the encoding of each piece of each text."""
        self._reset()
        texts = iter(texts)
        known: dict[str, Value] = {}
        before: dict[str, Value] = {}
        room = _REMEMBERED_CHARS

        def encode(pieces: Sequence[str]) -> dict[str, Value]:
            encodings = self._backend.encode_batch_fast(pieces, add_special_tokens=False)
            return dict(zip(pieces, map(value_of, encodings), strict=True))

        with ThreadPoolExecutor(1) as encoder:

            def prepare() -> tuple[list[list[str]], Any] | None:
                rows = [self.cut(text) for text in islice(texts, BATCH)]
                new = list(dict.fromkeys(p for row in rows for p in row if p not in known))
                return (rows, encoder.submit(encode, new)) if rows else None

            ready = prepare()
            while ready is not None:
                following = prepare()
                rows, future = ready
                found = future.result()
                for piece in found.keys() & before.keys():
                    if len(piece) <= room and piece not in known:
                        room -= len(piece)
                        known[piece] = found[piece]
                before = found
                for row in rows:
                    # What was remembered after this batch was prepared is in `found` as well.
                    yield [known[piece] if piece in known else found[piece] for piece in row]
                ready = following

    def _reset(self) -> None:
        """Switch off truncation and padding; only if on, since a change needs the lock."""
        if self._backend.truncation is not None:
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()

    def _cuts_are_sound(self) -> bool:
        """Return True if texts of added tokens and difficult neighbours may be cut."""
        tokens = [token.content for token in self._backend.get_added_tokens_decoder().values()]
        # Hundreds of reserved tokens behave like their siblings.
        chosen = [*tokens[:24], *tokens[-24:]]
        texts = [
            f"{left}{token}{right}{other}{left}"
            for number, token in enumerate(chosen)
            for other in (token, chosen[number - 1])
            for left in _PROBES
            for right in _PROBES[number % 3 :: 3]
        ]
        return self.encode_whole(texts) == self.encode(texts)


def cutting_points(backend: Any) -> tuple[re.Pattern[str], frozenset[str]] | None:
    """Return a pattern of the added tokens, and those before which to cut; None to cut nowhere.

    Like the tokenizer, the pattern takes the leftmost token, and the longest of several there.
    """
    # Tokens that are looked for after normalisation are found inside a piece.
    tokens = [t for t in backend.get_added_tokens_decoder().values() if not t.normalized]
    if backend.encode_special_tokens or any(token.single_word for token in tokens):
        return None
    cut = {t.content for t in tokens if not t.lstrip and t.content.strip() == t.content}
    if not cut:
        return None
    contents = sorted((t.content for t in tokens), key=lambda content: (-len(content), content))
    # A pattern that starts with a literal is searched much faster.
    shared = commonprefix(contents)  # noqa: RUF071 - no paths
    rest = "|".join(re.escape(content[len(shared) :]) for content in contents)
    return re.compile(f"{re.escape(shared)}(?:{rest})"), frozenset(cut)
