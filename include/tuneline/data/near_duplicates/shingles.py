"""Define the shingles by which texts are compared, as strings and as 64-bit hashes of a batch.

`normalise`, `char_grams` and `word_grams` are the definition. The rest computes the same shingles
for many texts at once: of ASCII text (most of it) the lower case, the words, their hashes and the
windows over them are array operations on the joined characters. A word's hash is a difference of
prefix sums (Rabin, "Fingerprinting by random polynomials", 1981), so that its cost does not depend
on its length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

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
BATCH_CHARS, BATCH_TEXTS = 1 << 18, 1 << 12

_NOT_WORD = re.compile(r"[\W_]+")
_SPACE = 32
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
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


@dataclass(frozen=True)
class Shingled:
    """The shingle hashes of texts: those of text i are `hashes[offsets[i]:offsets[i + 1]]`.

    They are in the order of the text, repeats included.
    """

    hashes: Hashes
    offsets: Indices

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, index: int) -> Hashes:
        """Return the sorted, distinct shingle hashes of one text."""
        return np.unique(self.hashes[self.offsets[index] : self.offsets[index + 1]])


@dataclass(frozen=True)
class Words:
    """Texts split into words.

    Attributes:
        codes: code points of all texts in lower case, 0 outside words.
        starts: index in `codes` at which each word begins.
        ends: index in `codes` at which each word ends.
        per_text: number of words of each text.
        lengths: number of characters of each normalised text.
    """

    codes: NDArray[np.uint32] | NDArray[np.uint8]
    starts: Indices
    ends: Indices
    per_text: Indices
    lengths: Indices


# The number of a text in its batch takes the upper bits of a key, the hash of its shingle the
# others. Two hashes of a text are equal in 52 bits once in 10^11 texts.
TEXT_BITS = (BATCH_TEXTS - 1).bit_length()


def distinct(shingled: Shingled) -> Hashes:
    """Return the sets of shingles of a batch of texts.

    Args:
        shingled: shingles of at most `BATCH_TEXTS` texts.

    Returns:
        Sorted keys, each once: the number of the text above the upper 52 bits of a hash.
    """
    numbers = np.repeat(np.arange(len(shingled), dtype=np.uint64), np.diff(shingled.offsets))
    shift = np.uint64(64 - TEXT_BITS)
    keys = np.sort((numbers << shift) | (shingled.hashes >> np.uint64(TEXT_BITS)))
    fresh = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=fresh[1:])
    return keys[fresh]


def text_of(keys: Hashes) -> Indices:
    """Return the number of the text of each of the keys that `distinct` gives."""
    return (keys >> np.uint64(64 - TEXT_BITS)).astype(np.int64)


def batches(texts: Sequence[str]) -> Iterator[slice]:
    """Cut texts into batches of about `BATCH_CHARS` characters, at most `BATCH_TEXTS` texts."""
    start = size = 0
    for index, text in enumerate(texts):
        full = size + len(text) > BATCH_CHARS or index - start == BATCH_TEXTS
        if full and index > start:
            yield slice(start, index)
            start, size = index, 0
        size += len(text)
    if start < len(texts):
        yield slice(start, len(texts))


@cache
def _code_of_byte() -> NDArray[np.uint8]:
    table = np.zeros(128, dtype=np.uint8)
    for code, word in _ascii_words().items():
        table[code] = 0 if word == " " else ord(word)
    return table


def words_of(texts: Sequence[str]) -> Words:
    """Split texts, normalised or not, into words."""
    plain = [text if text.isascii() else normalise(text) for text in texts]
    joined = "\n".join([*plain, ""])
    codes: NDArray[np.uint32] | NDArray[np.uint8]
    if joined.isascii():
        codes = _code_of_byte()[np.frombuffer(joined.encode(), dtype=np.uint8)]
    else:
        raw = np.frombuffer(joined.encode("utf-32-le"), dtype=np.uint32)
        ascii_codes = _code_of_byte()[np.minimum(raw, 127)]
        codes = np.where(raw < 128, ascii_codes, raw)
    inside = np.zeros(len(codes) + 1, dtype=np.int8)
    inside[1:] = codes != 0
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    # Every text is followed by a line feed, so each word that begins also ends.
    starts, ends = edges[::2], edges[1::2]
    lengths = np.fromiter(map(len, plain), dtype=np.int64, count=len(plain))
    bounds = np.concatenate(([0], np.cumsum(lengths + 1)))
    first = np.searchsorted(starts, bounds)
    per_text = np.diff(first)
    letters = np.concatenate(([0], np.cumsum(ends - starts)))
    normalised = np.diff(letters[first]) + np.maximum(per_text - 1, 0)
    return Words(codes, starts, ends, per_text, normalised)


def shingle_chars(texts: Sequence[str]) -> Shingled:
    """Return the character 5-grams of texts, which are normalised first."""
    return chars_of(words_of(texts))


def shingle_words(texts: Sequence[str]) -> Shingled:
    """Return the word 3-grams of texts, which are normalised first."""
    return grams_of(words_of(texts))


def chars_of(words: Words) -> Shingled:
    """Return the character 5-grams of texts that are split into words."""
    inside = words.codes != 0
    # One separator is kept after every word.
    kept = inside.copy()
    kept[1:] |= inside[:-1]
    units = words.codes[kept].astype(np.uint64)
    units[units == 0] = _SPACE
    strides = np.where(words.per_text > 0, words.lengths + 1, 0)
    return _windows(units, words.lengths, strides, CHARS)


def grams_of(words: Words) -> Shingled:
    """Return the word 3-grams of texts that are split into words."""
    return _windows(_word_hashes(words), words.per_text, words.per_text, WORDS)


def _word_hashes(words: Words) -> Hashes:
    codes = words.codes
    ascii_only = codes.dtype == np.uint8
    spread = _spread_of_byte()[codes] if ascii_only else mix(codes.astype(np.uint64))
    up, down = _powers(1 << (len(codes) - 1).bit_length())
    sums = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.cumsum(spread * up[: len(codes)], out=sums[1:])
    return mix((sums[words.ends] - sums[words.starts]) * down[words.starts])


@cache
def _spread_of_byte() -> Hashes:
    return mix(np.arange(128, dtype=np.uint64))


@cache
def _powers(count: int) -> tuple[Hashes, Hashes]:
    """Return the first `count` powers of the base and of its inverse, from the zeroth on."""
    result = []
    for base in (_BASE, _INVERSE):
        powers = np.full(count, base, dtype=np.uint64)
        powers[0] = 1
        result.append(np.cumprod(powers, dtype=np.uint64))
    return result[0], result[1]


def _windows(units: Hashes, lengths: Indices, strides: Indices, width: int) -> Shingled:
    """Hash every window of `width` units inside each text; a shorter text is one window.

    Args:
        units: characters or word hashes of all texts, one text after the other.
        lengths: number of units of each text.
        strides: number of units from the start of each text to the start of the next.
        width: length of a window, in units.
    """
    starts = np.cumsum(strides) - strides
    padded = np.concatenate((units, np.zeros(width, dtype=np.uint64)))
    rolled = np.zeros(len(units) + 1, dtype=np.uint64)
    for step in range(width):
        rolled = rolled * np.uint64(_BASE) + padded[step : step + len(rolled)]
    counts = np.maximum(lengths - width + 1, 1)
    offsets = np.concatenate(([0], np.cumsum(counts)))
    at = np.arange(offsets[-1], dtype=np.int64) + np.repeat(starts - offsets[:-1], counts)
    hashes = mix(rolled[at])
    for index in np.flatnonzero(lengths < width).tolist():
        value = 0
        for step in range(width):
            unit = int(units[starts[index] + step]) if step < lengths[index] else 0
            value = value * _BASE + unit
        one = np.array([value & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
        # The number of units distinguishes a short text from a longer one that begins with zeros.
        hashes[offsets[index]] = mix(one + np.uint64(width - lengths[index]))[0]
    return Shingled(hashes, offsets)
