"""Where two answers to the same prompt part: in their structure, and at which token."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from tuneline.data.conversations.answers import answer_object
from tuneline.evaluation.repeats.asking import MODES, Repeats
from tuneline.harness.answers import structure_of

View = Callable[[str], str]
Tokens = Callable[[str], Sequence[str]]

END = "the end of the answer"
# What may be missing where an object was cut behind a key, a colon or a comma.
_VALUES = ("", ": null", " null")


@dataclass(frozen=True)
class Flip:
    """Two answers to one prompt that differ.

    Attributes:
        row_id: the row.
        mode: how the second one was asked.
        token: number of the first token that differs, from 1.
        was: that token in the first answer, which the prompt got alone.
        became: that token in the other answer.
    """

    row_id: str
    mode: str
    token: int
    was: str
    became: str

    def text(self) -> str:
        """Return the flip as a part of a sentence."""
        return (
            f"{self.row_id} {_WORDS[self.mode]}, token {self.token}: {_quoted(self.was)} became "
            f"{_quoted(self.became)}"
        )


_WORDS = dict(zip(MODES, ("alone", "in a batch", "after a restart"), strict=True))


def _quoted(token: str) -> str:
    return token if token == END else repr(token)


def view_of(label_field: str | None, cut: Collection[str]) -> View:
    """Return the structure of answers as a function; see `structure_of`.

    Args:
        label_field: the field of a JSON answer that holds the class.
        cut: answers that the limit of tokens cut; what they leave open is closed first.
    """
    return lambda text: structure_of(closed(text) if text in cut else text, label_field)


def closed(text: str) -> str:
    """Close the strings, lists and objects that a cut JSON answer leaves open.

    An answer that is no JSON object even then is returned as it is.
    """
    closers: list[str] = []
    quoted = escaped = False
    for letter in text:
        if quoted:
            quoted, escaped = letter != '"' or escaped, letter == "\\" and not escaped
        elif letter == '"':
            quoted = True
        elif letter in "{[":
            closers.append("}" if letter == "{" else "]")
        elif letter in "}]" and closers:
            closers.pop()
    if not closers:
        return text
    begun = (text[:-1] if escaped else text) + '"' if quoted else text.rstrip().rstrip(",")
    end = "".join(reversed(closers))
    found = (begun + value + end for value in _VALUES)
    return next((whole for whole in found if answer_object(whole) is not None), text)


def flipped_in(repeats: Sequence[Repeats], mode: str, view: View) -> list[str]:
    """Return the ids of the rows whose answers in a mode differ from their reference."""
    return [
        entry.row_id
        for entry in repeats
        if any(view(text) != view(entry.alone[0]) for text in entry.compared(mode))
    ]


def flipped(repeats: Sequence[Repeats], view: View) -> list[str]:
    """Return the ids of the rows with a differing answer in any mode, in order."""
    found = {row_id for mode in MODES for row_id in flipped_in(repeats, mode, view)}
    return [entry.row_id for entry in repeats if entry.row_id in found]


def first_flip(repeats: Sequence[Repeats], view: View, tokens: Tokens) -> Flip | None:
    """Return the first flip, None without one.

    Args:
        repeats: the answers.
        view: the part of an answer that counts.
        tokens: splits an answer into its tokens.
    """
    for mode in MODES:
        for entry in repeats:
            reference = entry.alone[0]
            for text in entry.compared(mode):
                if view(text) != view(reference):
                    number, was, became = first_difference(tokens(reference), tokens(text))
                    return Flip(entry.row_id, mode, number, was, became)
    return None


def first_difference(first: Sequence[str], second: Sequence[str]) -> tuple[int, str, str]:
    """Return the number of the first token that differs, from 1, and it in both.

    Raises:
        ValueError: if they are equal.
    """
    for number, (was, became) in enumerate(zip_longest(first, second, fillvalue=END), 1):
        if was != became:
            return number, was, became
    raise ValueError("equal answers have no differing token")
