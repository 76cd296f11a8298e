"""Compare rows before and after scrubbing once more, by code that shares nothing with scrubbing."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|["\\/bfnrt])')
_QUOTED = re.compile(r'"([^"]*)"')
_NOT_WORD = re.compile(r"\W+")
Turns = Sequence[Mapping[str, str]]


def answers_torn(before: Turns, after: Turns, label_field: str | None) -> int:
    """Count the answers of a row that shared something with earlier turns, and no longer do.

    It is a value of JSON or of a call that stood in a turn, a word that went from the answer but
    not once from the turns, or stayed in it alone, or a surrogate that the turns lack though they
    had what it stands for.
    """
    torn = 0
    said: list[tuple[str, str]] = []
    for old, new in zip(before, after, strict=True):
        if old["role"] == "assistant" and said:
            torn += _is_torn(_values(old, label_field), _values(new, label_field), said)
        if old["role"] != "system":
            said.append((_spaced(_read(old["content"])), _spaced(_read(new["content"]))))
    return torn


def is_cut(whole: Mapping[str, str], turn: Mapping[str, str]) -> bool:
    """Return True if a turn has lost words, and has no other ones."""
    return {*_spaced(turn["content"]).split()} < {*_spaced(whole["content"]).split()}


def _is_torn(old: list[str], new: list[str], said: Sequence[tuple[str, str]]) -> bool:
    old, new = list(map(_spaced, old)), list(map(_spaced, new))
    asked = ["\n".join(turns) for turns in zip(*said, strict=True)]
    lower = list(map(str.casefold, asked))
    if len(old) != len(new):
        return True
    for one, other in zip(old, new, strict=True):
        if one.casefold() in lower[0] and other.casefold() not in lower[1]:
            return True
    answer = "\n".join(old), "\n".join(new)
    in_answer, in_turns = ([Counter(text.split()) for text in texts] for texts in (answer, asked))
    for word in in_answer[0].keys() & in_turns[0].keys():
        least = 2 if re.search(r"\d", word) else 3
        # A word that went from the answer may stand in the turns by chance as well.
        fewer = in_turns[1][word] < (1 if word in in_answer[1] else in_turns[0][word])
        if len(word) >= least and (word in in_answer[1]) == fewer:
            return True
    mine, theirs = ([{*text.casefold().split()} for text in texts] for texts in (answer, asked))
    return mine[0] - mine[1] <= theirs[0] and not mine[1] - mine[0] <= theirs[1]


def _values(turn: Mapping[str, str], label_field: str | None) -> list[str]:
    """Return the values of a JSON answer, or the text of a turn and what it holds in quotes."""
    text = turn["content"]
    if text.lstrip().startswith("{"):
        try:
            return [*_leaves(json.loads(text), label_field)]
        except ValueError:
            pass
    return [_read(text), *_QUOTED.findall(_read(text))]


def _leaves(value: Any, label_field: str | None) -> Iterator[str]:
    if isinstance(value, dict):
        for key, entry in value.items():
            if key != label_field:
                yield from _leaves(entry, label_field)
    elif isinstance(value, list):
        for entry in value:
            yield from _leaves(entry, label_field)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield str(value)


def _read(text: str) -> str:
    """Return a text without the escapes of JSON, if it may hold some."""
    if '"' not in text or "\\" not in text:
        return text
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)) if match[1] else " ", text)


def _spaced(text: str) -> str:
    """Return the words of a text between single spaces."""
    return f" {_NOT_WORD.sub(' ', text).strip()} "
