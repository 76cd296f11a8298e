"""A blind review in a terminal: one pair at a time, one key for each vote.

Every vote is stored as soon as its key is pressed, so that a review that was left is taken up where
it ended.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tuneline.artifacts.evaluation import BOTH_BAD, Mark, ReviewPair, ReviewSheet
from tuneline.errors import UserError
from tuneline.people.ballots import cast, document_of, sheet_of
from tuneline.run import Run

CHOICE_OF = {"a": "A", "b": "B", "t": "tie", "x": BOTH_BAD}
_UNDO, _QUIT, _FINISH = "u", "q", ("\n", "\r")
_KEYS = "a: A is better   b: B is better   t: tie   x: both are bad   u: undo   q: quit"
_CLEAR = "\x1b[2J\x1b[H"
_WIDTH = 100

ReadKey = Callable[[], str]
Show = Callable[[str], None]


@dataclass(frozen=True)
class Progress:
    """How far a reviewer came: pairs with a vote, and all pairs."""

    voted: int
    pairs: int

    @property
    def done(self) -> bool:
        """True if every pair has a vote."""
        return self.voted == self.pairs


def this_user() -> str:
    """Return the name of the user whose process this is, as the machine knows it."""
    try:
        # Unlike $LOGNAME, which getpass trusts, nobody types this one.
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def check_reviewer(run: Run, reviewer: str) -> None:
    """Refuse a user who is not assigned to the review of a run; the UserError names who is."""
    assigned = run.config.evaluation.reviewer_names
    if assigned and reviewer not in assigned:
        raise UserError(
            f"{reviewer} is not assigned to the review of {run.uri}; evaluation.reviewers names "
            f"{', '.join(assigned)}"
        )


def check_terminal() -> None:
    """Refuse to go on where no keys can be read; UserError if input or output is no terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError(
            "the review needs a terminal; write the pairs to a file with `tuneline review export` "
            "and read it back with `tuneline review import`"
        )


@contextmanager
def keys() -> Iterator[ReadKey]:
    """Read single keys from the terminal while the block runs; its settings come back after it."""
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        # Nothing at the end of the input: the terminal is gone.
        yield lambda: os.read(descriptor, 1).decode(errors="replace") or _QUIT
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def review(run: Run, reviewer: str, read_key: ReadKey, show: Show) -> Progress:
    """Show the pairs that a reviewer has not voted on, and store a vote for each key."""
    sheet = sheet_of(run)
    # A name may hold what a key of the store can't.
    name = f"terminal-{hashlib.sha256(reviewer.encode()).hexdigest()[:16]}"
    earlier = document_of(sheet.review_id, name).find(run)
    marks = list(earlier.marks) if earlier else []
    while True:
        rest = [pair for pair in sheet.pairs if pair.pair not in {mark.pair for mark in marks}]
        show(_screen(sheet, rest[0] if rest else None, len(marks)))
        key = read_key().lower()
        if key == _QUIT or (not rest and key in _FINISH):
            return Progress(len(marks), len(sheet.pairs))
        if key == _UNDO and marks:
            marks.pop()
        elif rest and key in CHOICE_OF:
            marks.append(Mark(pair=rest[0].pair, choice=CHOICE_OF[key]))
        else:
            continue
        cast(run, sheet.review_id, reviewer, "terminal", marks, name=name)


def _screen(sheet: ReviewSheet, pair: ReviewPair | None, voted: int) -> str:
    total = len(sheet.pairs)
    if pair is None:
        return (
            f"{_CLEAR}All {total} pairs have a vote.\n\n"
            "Enter: finish and see the verdict   u: undo the last vote\n"
        )
    parts = [_wrapped(sheet.instructions)] if not voted else []
    parts.append(f"── Pair {voted + 1} of {total} " + "─" * 40)
    for name, text in (("Question", pair.prompt), ("A", pair.A), ("B", pair.B)):
        # Control characters could rewrite what the terminal shows.
        chars = (c if c == "\n" or c.isprintable() else "�" for c in text.expandtabs(4))
        parts.append(f"{name}:\n{textwrap.indent(_wrapped(''.join(chars)), '    ')}")
    return _CLEAR + "\n\n".join([*parts, _KEYS]) + "\n"


def _wrapped(text: str) -> str:
    lines = (textwrap.wrap(line, _WIDTH, drop_whitespace=False) for line in text.splitlines())
    return "\n".join("\n".join(line) if line else "" for line in lines)
