"""Texts that patterns of a backtracking engine take long for, and the time that some work takes."""

import random
import signal
import time
from collections.abc import Callable, Iterator

# What rules start with, part words by, or count.
FRAGMENTS = (
    *[*"-*_.@: ,;'\"\\/()[]<>{}#$+=~|!?·•&%\n\t\0", "  ", "..", "://", "\\n", "é", "😀", "’", " -"],
    *["1", "12", "1 ", "1.", "-1", "1234", "0800 ", "1/1/81", "1.2.3.4", "4111 1111 1111 1111"],
    *["a", "A", "a ", "a-", "a.", "a_", "Ab", "x1", "a@b.co", "at ", " dot ", "one ", "sk-", "eyJ"],
    *["pass:", "token-", "eyJaaaaaaaa-", "DE89 ", "john ", "12 Maple Street ", "my number is "],
)
# Beginnings and repeated pieces for which patterns of the product once took exponential time.
REPEATED = (
    ("my number 1234 ", "*"),
    ("please email me at home\n", "_"),
    ("please email me at home\n", "a-b_"),
    ("card ending •• ", "·* "),
    ("my pin ", "12 uh er "),
    ("", "pass:"),
    ("", "token-"),
    ("", "eyJaaaaaaaa-"),
    ("", "12/3/81 "),
)


class Slow(BaseException):
    """Raised when a limit is reached; no `except Exception` of the product holds it up."""


def _stop(*_: object) -> None:
    raise Slow


def seconds(work: Callable[[], object], limit: float) -> float:
    """CPU seconds of some work in the main thread; the limit if the process takes longer."""
    before = signal.signal(signal.SIGVTALRM, _stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit)
    began = time.thread_time()
    try:
        work()
    except Slow:
        return limit
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    return time.thread_time() - began


def filled(lead: str, piece: str, size: int) -> str:
    """A text of a size that repeats a piece."""
    return (lead + piece * (size // len(piece) + 1))[:size]


def hostile_texts(draw: random.Random, size: int, count: int) -> Iterator[str]:
    """Texts that repeat one to three fragments, maybe between others."""
    for _ in range(count):
        lead, piece, end = (
            "".join(draw.choice(FRAGMENTS) for _ in range(draw.randint(*number)))
            for number in ((0, 2), (1, 3), (0, 1))
        )
        yield filled(lead, piece, size) + end
