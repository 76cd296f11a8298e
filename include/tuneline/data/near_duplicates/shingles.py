"""Shingles of texts as 64-bit hashes, for a whole batch of texts at once.

Texts are compared as `normalise` leaves them: lower case, words apart by one space. ASCII text
(most of it) is never touched one by one: lower case, words, their hashes and the windows over them
are array operations on the joined characters. A word's hash is a difference of prefix sums (Rabin,
"Fingerprinting by random polynomials", 1981), so that it costs the same whatever its length.
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
# Rows up to SHORT characters are compared by character 5-grams, rows over LONG by word 3-grams,
# those between by both: a pair with Jaccard 0.8 or more is at most a quarter apart in length, so
# it always shares one of the two.
SHORT, LONG = 400, 320
# Characters of a batch, whose arrays then stay in the processor's cache, and texts at most.
BATCH_CHARS, BATCH_TEXTS = 1 << 18, 1 << 12

_NOT_WORD = re.compile(r"[\W_]+")
_SPACE = 32
# A random odd base; odd numbers have an inverse modulo 2^64.
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)


def normalise(text: str) -> str:
    """Lower case, every run of other than letters and digits as one space."""
    if text.isascii():
        return " ".join(text.translate(_ascii_words()).split())
    return _NOT_WORD.sub(" ", text.casefold()).strip()


@cache
def _ascii_words() -> dict[int, str]:
    """ASCII to lower case, what is neither letter nor digit to a space."""
    return {code: chr(code).lower() if chr(code).isalnum() else " " for code in range(128)}


def mix(values: Hashes) -> Hashes:
    """MurmurHash3's 64-bit finaliser: a bijection that spreads its input."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


@dataclass(frozen=True)
class Shingled:
    """Shingle hashes of texts: those of text i are `hashes[offsets[i]:offsets[i + 1]]`.

    They come in the order of the text, repeats included.
    """

    hashes: Hashes
    offsets: Indices

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, index: int) -> Hashes:
        """The sorted, distinct shingle hashes of one text."""
        return np.unique(self.hashes[self.offsets[index] : self.offsets[index + 1]])


@dataclass(frozen=True)
class Words:
    """Texts taken apart.

    Attributes:
        codes: code points of all texts in lower case, 0 where no word is.
        starts: where each word begins in `codes`.
        ends: where it ends.
        per_text: words of each text.
        lengths: characters of each text as normalised.
    """

    codes: NDArray[np.uint32] | NDArray[np.uint8]
    starts: Indices
    ends: Indices
    per_text: Indices
    lengths: Indices


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
    """Take texts apart into words, whatever state of normalisation they are in."""
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
    """Character 5-grams of texts as normalised."""
    return chars_of(words_of(texts))


def shingle_words(texts: Sequence[str]) -> Shingled:
    """Word 3-grams of texts as normalised."""
    return grams_of(words_of(texts))


def chars_of(words: Words) -> Shingled:
    """Character 5-grams of texts taken apart."""
    inside = words.codes != 0
    # One separator is kept after every word.
    kept = inside.copy()
    kept[1:] |= inside[:-1]
    units = words.codes[kept].astype(np.uint64)
    units[units == 0] = _SPACE
    strides = np.where(words.per_text > 0, words.lengths + 1, 0)
    return _windows(units, words.lengths, strides, CHARS)


def grams_of(words: Words) -> Shingled:
    """Word 3-grams of texts taken apart."""
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
    """Powers of the base and of its inverse, from the zeroth on."""
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
        lengths: units of each text.
        strides: units from the start of each text to the start of the next.
        width: of a window, in units.
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
        # The number of units tells a short text from a longer one that begins with zeros.
        hashes[offsets[index]] = mix(one + np.uint64(width - lengths[index]))[0]
    return Shingled(hashes, offsets)
