"""Find which rows are alike: what they ask, under which system turn, and what they answer.

It is computed on the rows before scrubbing, where no name that was found in one of two twins hides
the other, and handed on as numbers, without any text; and again on the rows as they stand, since
two that differ in a secret alone become equal.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice, product
from os.path import commonprefix

import numpy as np
import pyarrow as pa

from tuneline.artifacts.data import ALIKE, ALIKE_PAIRS
from tuneline.data.conversations.answers import answer_object
from tuneline.data.near_duplicates.compared_text import compared_texts, question
from tuneline.data.near_duplicates.minhash import MAX_BUCKET, near_pairs, similarities
from tuneline.data.near_duplicates.shingles import Indices, normalise
from tuneline.data.near_duplicates.split import smallest_of_group
from tuneline.data.tables.rows import Row, chosen_of, column_of, write_audit
from tuneline.step_context import StepContext

# Questions that begin, or end, with as many equal characters are about the same document. If more
# than MOST_ROWS and a share of all questions do, it is an instruction.
BLOCK, MOST_ROWS, MOST_SHARE = 150, 10, 0.05
# Questions that differ in as many words in one place, and share less of it, ask something else.
OTHER_WORDS, MOST_SHARED = 3, 2 / 3
# What `normalise` drops although it tells texts apart: operators, currencies, emoji, a minus. The
# marks of sentences, which people set as they like, are not among it.
_SIGN = re.compile(r"(?<![^\s(])-(?=[\s\d])|[^\w\s.,;:!?'\"()-]")
_NUMBER = re.compile(r"\d+")

Pair = tuple[int, int]


@dataclass(frozen=True)
class Alike:
    """Numbers by row, equal for rows that are equal in something, and pairs of near numbers.

    Attributes:
        question: what is asked, by the compared text.
        prompt: all turns before the answer, system turn included, up to white space and case.
        kind: question, its signs, system turn and answer: rows of one kind are duplicates.
        begin, end: a long text with which the question begins or ends as others do, -1 for none.
        near: pairs of near questions.
        same: pairs of kinds whose rows are duplicates too, as their texts are near.
    """

    question: Indices
    prompt: Indices
    kind: Indices
    begin: Indices
    end: Indices
    near: Sequence[Pair]
    same: Sequence[Pair]

    def contradictions(self) -> list[tuple[list[int], list[int]]]:
        """Return the rows of each prompt with several answers, and the number of each's answer."""
        merged = np.array(smallest_of_group(int(self.kind.max(initial=0)) + 1, self.same))
        answers = merged[self.kind]
        asked = np.unique(np.stack((self.prompt, answers), axis=1), axis=0)[:, 0]
        several = np.bincount(asked, minlength=int(self.prompt.max(initial=0)) + 1) > 1
        groups: dict[int, list[int]] = defaultdict(list)
        for row in np.flatnonzero(several[self.prompt]).tolist():
            groups[int(self.prompt[row])].append(row)
        return [(rows, answers[rows].tolist()) for rows in groups.values()]

    def ties(self, rows: Sequence[int]) -> tuple[list[Pair], set[int]]:
        """Return pairs that hold those of the rows together that ask alike, and the near ones."""
        first: dict[int, int] = {}
        asked = list(_of(self.question, rows))
        pairs = [(first.setdefault(number, row), row) for row, number in asked]
        linked = [pair for pair in self.near if pair[0] in first and pair[1] in first]
        often = Counter(number for _, number in asked)
        shared = {number for number, count in often.items() if count > 1}.union(*linked)
        pairs += [(first[one], first[other]) for one, other in linked]
        for numbers in (self.begin, self.end):
            known: dict[int, int] = {}
            pairs += [(known.setdefault(n, row), row) for row, n in _of(numbers, rows) if n >= 0]
        return pairs, {row for row, number in asked if number in shared}


def _of(numbers: Indices, rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Give each of the rows with its number."""
    return zip(rows, numbers[np.array(rows, dtype=np.int64)].tolist(), strict=True)


def partners(pairs: Iterable[Pair]) -> dict[int, list[int]]:
    """Return what each number is paired with."""
    found: dict[int, list[int]] = defaultdict(list)
    for one, other in pairs:
        found[one].append(other)
        found[other].append(one)
    return found


def find_alike(rows: Sequence[Row], threshold: float) -> Alike:
    """Compare rows; questions, and answers without a class, are near from a Jaccard similarity."""
    own = list(map(question, rows))
    texts = compared_texts(own, own)
    asked, distinct = _numbers(texts), list(dict.fromkeys(texts))
    del own, texts
    prompt, frame, answer, figures = _keys_of(rows)
    near = [(one, other) for one, other, _ in near_pairs(distinct, threshold)]
    triples = np.stack((asked, frame, answer), axis=1)
    _, first, kind = np.unique(triples, axis=0, return_index=True, return_inverse=True)
    terms = zip(frame[first].tolist(), figures[first].tolist(), strict=True)
    possible = _possible_pairs(asked[first].tolist(), list(terms), near, distinct)
    same = _with_same_answer(rows, first, answer, possible, threshold)
    begin, end = (
        _shared([text[part] if len(text) > BLOCK else "" for text in distinct])[asked]
        for part in (slice(BLOCK), slice(-BLOCK, None))
    )
    return Alike(asked, prompt, kind.reshape(-1), begin, end, near, same)


def _numbers(keys: Iterable[str | bytes]) -> Indices:
    """Number keys from 0 on, in the order in which they first come."""
    known: dict[str | bytes, int] = {}
    return np.fromiter((known.setdefault(key, len(known)) for key in keys), dtype=np.int64)


def _keys_of(rows: Iterable[Row]) -> tuple[Indices, ...]:
    """Number each row's prompt, its system turn with the question's signs, answer and figures."""
    known: tuple[dict[bytes, int], ...] = ({}, {}, {}, {})
    numbers = (
        seen.setdefault(hashlib.blake2b(key.encode("utf-8", "surrogatepass")).digest(), len(seen))
        for row in rows
        for seen, key in zip(known, _keys(row), strict=True)
    )
    return tuple(np.fromiter(numbers, dtype=np.int64).reshape(-1, len(known)).T)


def _keys(row: Row) -> tuple[str, str, str, str]:
    turns = [(turn["role"], " ".join(turn["content"].split()).casefold()) for turn in row.prompt]
    system = [text for role, text in turns if role == "system"]
    asked = signs("".join(turn["content"] for turn in row.prompt if turn["role"] != "system"))
    prompt, frame = ("\x00".join(parts) for parts in (chain(*turns), (*system, asked)))
    value = answer_object(row.answer)
    if row.label is not None or value is not None:
        # A class or a JSON value is the same or another one, never near.
        meant = json.dumps([row.label] if row.label is not None else value, sort_keys=True)
        return prompt, frame, meant, meant
    figures = f"{signs(row.answer)} {' '.join(_NUMBER.findall(row.answer))}"
    return prompt, frame, f"{normalise(row.answer)}\x00{figures}", figures


def signs(text: str) -> str:
    """Return the signs of a text that are no marks of sentences: `+`, `/`, `#`, `<`, `€`, emoji."""
    found = _SIGN.findall(text)
    return "".join(s for s in found if s.isascii() or unicodedata.category(s).startswith("S"))


def asks_something_else(one: str, other: str) -> bool:
    """Return True if two near questions differ in one place, in which they have little in common.

    Such are two questions to one document, which is most of their text.
    """
    words = one.split(), other.split()
    start = len(commonprefix(words))  # noqa: RUF071 - no paths
    left = [own[start:][::-1] for own in words]
    end = len(commonprefix(left))  # noqa: RUF071 - no paths
    left = [own[end:] for own in left]
    shared = (Counter(left[0]) & Counter(left[1])).total()
    least, most = sorted(map(len, left))
    return least - shared >= OTHER_WORDS and shared < MOST_SHARED * most


def _possible_pairs(
    asked: Sequence[int], terms: Sequence[Pair], near: Sequence[Pair], distinct: Sequence[str]
) -> list[Pair]:
    """Return the pairs of kinds that ask nearly the same on equal terms: frame and figures."""
    often = Counter(asked)
    wanted = {number for number, count in often.items() if count > 1}.union(*near)
    members: dict[int, dict[Pair, list[int]]] = {number: defaultdict(list) for number in wanted}
    for kind, number in enumerate(asked):
        if number in members:
            members[number][terms[kind]].append(kind)
    pairs: list[Pair] = []
    for groups in members.values():
        for group in groups.values():
            pairs += combinations(group[:MAX_BUCKET], 2)
    for one, other in near:
        common = members[one].keys() & members[other].keys()
        if common and not asks_something_else(distinct[one], distinct[other]):
            for term in common:
                groups_of_two = members[one][term], members[other][term]
                pairs += islice(product(*groups_of_two), MAX_BUCKET)
    return pairs


def _with_same_answer(
    rows: Sequence[Row], first: Indices, answer: Indices, possible: Sequence[Pair], threshold: float
) -> list[Pair]:
    """Return the pairs of kinds whose answers are equal, or near texts."""
    pairs = np.array(possible, dtype=np.int64).reshape(-1, 2)
    same = answer[first[pairs]]
    equal = same[:, 0] == same[:, 1]
    open_pairs = pairs[~equal]
    among, numbers = np.unique(first[open_pairs], return_inverse=True)
    flags = bytearray(len(rows))
    for row in among.tolist():
        flags[row] = 1
    texts = [row.answer for row in chosen_of(rows, flags)]
    near = similarities(texts, numbers.reshape(-1, 2)) >= threshold
    return [(one, other) for one, other in (*pairs[equal].tolist(), *open_pairs[near].tolist())]


def _shared(blocks: Sequence[str]) -> Indices:
    """Number the blocks that some texts share, -1 for none and for what more of them share."""
    often = Counter(blocks)
    most = max(MOST_ROWS, MOST_SHARE * len(blocks))
    numbers = _numbers(blocks)
    told = [bool(block) and 1 < often[block] <= most for block in blocks]
    return np.where(told, numbers, -1)


_BY_ROW = ("question", "prompt", "kind", "begin", "end")


def write_alike(ctx: StepContext, rows: Sequence[Row]) -> dict[str, int]:
    """Write which rows are alike before they are scrubbed; return the rows of each table."""
    alike = find_alike(rows, ctx.config.data.near_duplicate_jaccard)
    columns = {name: getattr(alike, name) for name in _BY_ROW}
    write_audit(ALIKE.path(ctx), {"row_id": column_of(rows, "row_id"), **columns})
    pairs = {"near": alike.near, "same": alike.same}
    named = [(name, *pair) for name, found in pairs.items() for pair in found]
    of, one, other = zip(*named, strict=True) if named else ([], [], [])
    write_audit(ALIKE_PAIRS.path(ctx), {"of": of, "one": one, "other": other})
    return {ALIKE.name: len(rows), ALIKE_PAIRS.name: len(named)}


def read_alike(ctx: StepContext, ids: Sequence[str]) -> Alike:
    """Read what was written of the rows with these ids, which are in order."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(ALIKE.fetch(ctx))
    table = table.filter(pc.is_in(table["row_id"], pa.array(ids)))
    by_row = {name: table[name].to_numpy() for name in _BY_ROW}
    pairs = pq.read_table(ALIKE_PAIRS.fetch(ctx))
    near, same = (
        [*zip(*(part[side].to_pylist() for side in ("one", "other")), strict=True)]
        for part in (pairs.filter(pc.equal(pairs["of"], name)) for name in ("near", "same"))
    )
    return Alike(**by_row, near=near, same=same)
