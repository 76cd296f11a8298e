"""Run the systems of the deduplication benchmark: raw texts in, pairs of near-duplicates out.

All compare the same shingles: character 5-grams of texts up to `SHORT` characters, word 3-grams of
texts over `LONG`, of the text in lower case with one space for everything but letters and digits.
They are written down once more here since the peers' environment does not have Tuneline.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from benchmarks.contest.trial import Job, Trial, read_lines, version_of
from tuneline import __version__

THRESHOLD = 0.8
NUM_PERM = 128
SEED = 42
SHORT, LONG = 400, 320

_NOT_WORD = re.compile(r"[\W_]+")

Pair = tuple[int, int]
Texts = Sequence[str]
Tokens = list[list[str]]


def plain(text: str) -> str:
    """Return a text in the form in which all systems compare it."""
    return _NOT_WORD.sub(" ", text.casefold()).strip()


def chars_of(text: str, width: int = 5) -> list[str]:
    """Return the character n-grams of a text; a shorter text is its only one."""
    return [text[i : i + width] for i in range(max(1, len(text) - width + 1))]


def words_of(text: str, width: int = 3) -> list[str]:
    """Return the word n-grams of a text; a shorter text is its only one."""
    words = text.split()
    if len(words) <= width:
        return [text]
    return list(map(" ".join, zip(*(words[k:] for k in range(width)), strict=False)))


def groups(texts: Texts) -> Iterator[tuple[list[int], Callable[[str], list[str]]]]:
    """Yield the numbers of the texts that are compared by each kind of shingle."""
    short = [i for i, text in enumerate(texts) if len(text) <= SHORT]
    long = [i for i, text in enumerate(texts) if len(text) > LONG]
    if len(short) > 1:
        yield short, chars_of
    if len(long) > 1:
        yield long, words_of


def pair_scores(found: Iterable[Sequence[int]], truth: Iterable[Sequence[int]]) -> dict[str, float]:
    """Return recall and precision of pairs; 1 where there is nothing to find or nothing found."""
    wanted = {(int(i), int(j)) for i, j in truth}
    given = {(int(i), int(j)) for i, j in found}
    right = len(wanted & given)
    return {
        "recall": right / len(wanted) if wanted else 1.0,
        "precision": right / len(given) if given else 1.0,
    }


def tuneline(job: Job) -> Trial:
    """Try this project's kernels: signatures in batches, bands, exact verification."""
    from tuneline.data.near_duplicates.minhash import near_pairs

    def work(texts: Texts) -> list[Pair]:
        return [(i, j) for i, j, _ in near_pairs(texts, THRESHOLD)]

    return _trial(job, __version__, work)


def datasketch(job: Job) -> Trial:
    """Try datasketch: `MinHash.bulk` and `MinHashLSH`, with the defaults or with xxHash."""
    from datasketch import MinHash, MinHashLSH

    options: dict[str, Any] = {"num_perm": NUM_PERM}
    packages = ["datasketch"]
    if job.get("xxhash"):
        from xxhash import xxh32_intdigest

        options["hashfunc"] = xxh32_intdigest
        packages.append("xxhash")

    def find(tokens: Tokens) -> Iterator[Pair]:
        encoded = ([token.encode() for token in text] for text in tokens)
        sketches = MinHash.bulk(encoded, **options)
        index = MinHashLSH(threshold=THRESHOLD, num_perm=NUM_PERM)
        for number, sketch in enumerate(sketches):
            index.insert(number, sketch, check_duplication=False)
        for number, sketch in enumerate(sketches):
            yield from ((number, other) for other in index.query(sketch) if other > number)

    return _trial(job, version_of(*packages), _grouped(find))


def rensa(job: Job) -> Trial:
    """Try rensa: R-MinHash of token sets and its LSH with the job's number of bands."""
    from rensa import RMinHash, RMinHashLSH

    def find(tokens: Tokens) -> Iterator[Pair]:
        sketches = RMinHash.from_token_sets(tokens, NUM_PERM, SEED)
        index = RMinHashLSH(THRESHOLD, NUM_PERM, job["bands"])
        index.insert_many(sketches)
        for number, others in enumerate(index.query_all(sketches)):
            yield from ((number, other) for other in others if other > number)

    return _trial(job, version_of("rensa"), _grouped(find))


def _grouped(find: Callable[[Tokens], Iterator[Pair]]) -> Callable[[Texts], set[Pair]]:
    """Wrap a peer's search so that it takes raw texts and searches each group of them."""

    def work(raw: Texts) -> set[Pair]:
        texts = [plain(text) for text in raw]
        found: set[Pair] = set()
        for members, shingle in groups(texts):
            pairs = find([shingle(texts[i]) for i in members])
            found.update((members[i], members[j]) for i, j in pairs)
        return found

    return work


def _trial(job: Job, version: str, work: Callable[[Texts], Any]) -> Trial:
    def score(pairs: Any) -> dict[str, float]:
        return pair_scores(pairs, read_lines(job["truth"])) if "truth" in job else {}

    return Trial(version, read_lines(job["texts"]), work, score)
