"""Define the shingles by which texts are compared, as strings and as 64-bit hashes of a batch.

`normalise`, `char_grams` and `word_grams` are the definition; the rest computes the same by array
operations on the joined characters of many texts. A word's hash is a difference of prefix sums
(Rabin, "Fingerprinting by random polynomials", 1981): its cost does not depend on its length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]

CHARS, WORDS = 5, 3
# Rows up to SHORT characters are compared by character 5-grams, rows over LONG by word 3-grams and
# rows in between by both: the lengths of a pair with a similarity of 0.8 or more differ by at most
# a quarter, so one of the two always applies to both texts.
SHORT, LONG = 400, 320
# Most characters of a batch, so that its arrays stay in the processor's cache, and most texts.
BATCH_CHARS, BATCH_TEXTS = 1 << 16, 1 << 12

_NOT_WORD = re.compile(r"[\W_]+")
_SPACE, _END = 32, 10
# A random odd base; odd numbers have an inverse modulo 2^64.
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)


def normalise(text: str) -> str:
    """Return the text in lower case, with one space for each run of non-letters and non-digits."""
    if text.isascii():
        return " ".join(text.translate(_ascii_words()).split())
    return _NOT_WORD.sub(" ", text.casefold()).strip()


def char_grams(text: str) -> frozenset[str]:
    """Return the set of character 5-grams of a text; a shorter text is its only one."""
    return frozenset(text[i : i + CHARS] for i in range(max(1, len(text) - CHARS + 1)))


def word_grams(text: str) -> frozenset[str]:
    """Return the set of word 3-grams of a text; a shorter text is its only one."""
    words = text.split()
    return frozenset(" ".join(words[i : i + WORDS]) for i in range(max(1, len(words) - WORDS + 1)))


@cache
def _ascii_words() -> dict[int, str]:
    """Map ASCII letters to lower case, and what is neither letter nor digit to a space."""
    return {code: chr(code).lower() if chr(code).isalnum() else " " for code in range(128)}


def mix(values: Hashes) -> Hashes:
    """Apply MurmurHash3's 64-bit finaliser, a bijection that spreads its input."""
    shift = np.uint64(33)
    shifted = values >> shift
    mixed = values ^ shifted
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        mixed *= np.uint64(factor)
        np.right_shift(mixed, shift, out=shifted)
        mixed ^= shifted
    return mixed


@dataclass(frozen=True)
class Shingled:
    """Shingle hashes of texts, those of text i at `hashes[offsets[i]:offsets[i + 1]]`."""

    hashes: Hashes
    offsets: Indices

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, index: int) -> Hashes:
        """Return the sorted, distinct shingle hashes of one text."""
        return np.unique(self.hashes[self.offsets[index] : self.offsets[index + 1]])


@dataclass(frozen=True)
class Words:
    """Normalised texts as code points, a line feed after each; where each begins, its length."""

    units: NDArray[np.uint32] | NDArray[np.uint8]
    starts: Indices
    lengths: Indices

    def chosen(self, texts: NDArray[np.bool_]) -> Words:
        """Return the texts that the mask, shape (texts,), chooses."""
        if texts.all():
            return self
        lengths = self.lengths[texts]
        units = self.units.take(np.flatnonzero(np.repeat(texts, self.lengths + 1)))
        return Words(units, np.cumsum(lengths + 1) - (lengths + 1), lengths)


# The number of a text in its batch takes the upper bits of a key, the hash of its shingle the
# others. Two hashes of a text are equal in 52 bits once in 10^11 texts.
TEXT_BITS = (BATCH_TEXTS - 1).bit_length()
HASH_BITS = 64 - TEXT_BITS


def distinct(shingled: Shingled) -> Hashes:
    """Return sorted, distinct keys of a batch: the text above the upper 52 bits of each hash."""
    numbers = np.repeat(np.arange(len(shingled), dtype=np.uint64), np.diff(shingled.offsets))
    shift = np.uint64(HASH_BITS)
    keys = np.sort((numbers << shift) | (shingled.hashes >> np.uint64(TEXT_BITS)))
    fresh = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=fresh[1:])
    return keys[fresh]


def text_of(keys: Hashes) -> Indices:
    """Return the number of the text of each of the keys that `distinct` gives."""
    return (keys >> np.uint64(HASH_BITS)).astype(np.int64)


def batches(texts: Sequence[str]) -> Iterator[slice]:
    """Cut texts into batches of about `BATCH_CHARS` characters, at most `BATCH_TEXTS` texts."""
    ends = np.cumsum(np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)))
    start = size = 0
    while start < len(texts):
        full = int(np.searchsorted(ends, size + BATCH_CHARS, side="right"))
        stop = min(max(full, start + 1), start + BATCH_TEXTS, len(texts))
        yield slice(start, stop)
        start, size = stop, int(ends[stop - 1])


# No text of ASCII holds these, so they separate texts.
_GAP_BYTE, _GAP_CHARACTER = "\xff", "\U0010ffff"


@cache
def _unit_of_byte() -> bytes:
    """Map ASCII to lower case or a space, and the byte between two texts to a line feed."""
    plain = [ord(_ascii_words()[code]) for code in range(128)]
    return bytes([*plain, *range(128, 255), _END])


def words_of(texts: Sequence[str]) -> Words:
    """Normalise texts, which may be normalised already."""
    plain = [text if text.isascii() else normalise(text) for text in texts]
    units: NDArray[np.uint32] | NDArray[np.uint8]
    if all(map(str.isascii, plain)):
        joined = _GAP_BYTE.join([*plain, ""]).encode("latin-1").translate(_unit_of_byte())
        units = np.frombuffer(joined, dtype=np.uint8)
    else:
        wide = _GAP_CHARACTER.join([*plain, ""]).encode("utf-32-le")
        raw = np.frombuffer(wide, dtype=np.uint32)
        ascii_units = np.frombuffer(_unit_of_byte(), dtype=np.uint8)[np.minimum(raw, 127)]
        units = np.where(raw < 128, ascii_units, raw)
        units[raw == ord(_GAP_CHARACTER)] = _END
    units = _single_spaces(units)
    ends = np.flatnonzero(units == _END)
    starts = np.concatenate(([0], ends[:-1] + 1)) if len(ends) else ends
    return Words(units, starts, ends - starts)


def _single_spaces(units: NDArray[Any]) -> NDArray[Any]:
    """Remove the spaces that have another before or after them, or stand at an end of a text."""
    word = units > _SPACE
    kept = word | (units == _END)
    # The last space of several, and none at the end of a text.
    kept[:-1] |= word[1:]
    # Twice as fast as to index by the mask.
    units = units.take(np.flatnonzero(kept))
    leading = np.flatnonzero((units[1:] == _SPACE) & (units[:-1] == _END)) + 1
    if len(units) and units[0] == _SPACE:
        leading = np.append(leading, 0)
    return np.delete(units, leading) if len(leading) else units


def shingle_chars(texts: Sequence[str]) -> Shingled:
    """Return the character 5-grams of texts, which are normalised first."""
    return chars_of(words_of(texts))


def shingle_words(texts: Sequence[str]) -> Shingled:
    """Return the word 3-grams of texts, which are normalised first."""
    return grams_of(words_of(texts))


def chars_of(words: Words) -> Shingled:
    """Return the character 5-grams of normalised texts."""
    return _windows(words.units, words.starts, words.lengths, width=CHARS, gap=1)


def grams_of(words: Words, width: int = WORDS) -> Shingled:
    """Return the word n-grams of normalised texts, 3-grams by default."""
    units = words.units
    gaps = np.flatnonzero(units <= _SPACE)
    begins = np.concatenate(([0], gaps[:-1] + 1)) if len(gaps) else gaps
    hashes = _word_hashes(units, begins, gaps)
    last = np.flatnonzero(units[gaps] == _END)
    # A text without words keeps the place of one.
    first = np.concatenate(([0], last[:-1] + 1)) if len(last) else last
    per_text = np.where(words.lengths > 0, last - first + 1, 0)
    return _windows(hashes, first, per_text, width=width, gap=0)


def _word_hashes(units: NDArray[Any], begins: Indices, ends: Indices) -> Hashes:
    ascii_only = units.dtype == np.uint8
    spread = (
        mix(np.arange(128, dtype=np.uint64))[units] if ascii_only else mix(units.astype(np.uint64))
    )
    up, down = _powers(1 << (len(units) - 1).bit_length())
    spread *= up[: len(units)]
    sums = np.zeros(len(units) + 1, dtype=np.uint64)
    np.cumsum(spread, out=sums[1:])
    return mix((sums[ends] - sums[begins]) * down[begins])


@cache
def _powers(count: int) -> tuple[Hashes, Hashes]:
    """Return the first `count` powers of the base and of its inverse, from the zeroth on."""
    result = []
    for base in (_BASE, _INVERSE):
        powers = np.full(count, base, dtype=np.uint64)
        powers[0] = 1
        result.append(np.cumprod(powers, dtype=np.uint64))
    return result[0], result[1]


def _windows(
    units: NDArray[Any], starts: Indices, lengths: Indices, *, width: int, gap: int
) -> Shingled:
    """Hash every window of `width` units inside each text; a shorter text is one window."""
    offsets = np.append(starts, len(units))
    padded = np.zeros(len(units) + width, dtype=np.uint64)
    padded[: len(units)] = units
    rolled = padded[: len(units)].copy()
    for step in range(1, width):
        rolled *= np.uint64(_BASE)
        rolled += padded[step : step + len(units)]
    first = rolled[starts]
    short = np.flatnonzero(lengths < width)
    first[short] = _short_windows(padded, starts[short], lengths[short], width)
    tail = offsets[1:, None] - np.arange(1, width + gap)
    rolled[np.maximum(tail, starts[:, None])] = first[:, None]
    return Shingled(mix(rolled), offsets)


def _short_windows(units: Hashes, starts: Indices, lengths: Indices, width: int) -> Hashes:
    """Return the value of texts shorter than a window."""
    values = np.zeros(len(starts), dtype=np.uint64)
    for step in range(width):
        values *= np.uint64(_BASE)
        values += np.where(step < lengths, units[starts + step], np.uint64(0))
    # The number of units distinguishes a short text from a longer one that begins with zeros.
    return values + (width - lengths).astype(np.uint64)
