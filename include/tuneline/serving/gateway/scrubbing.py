"""Scrub texts in a process of its own, with a deadline for each conversation.

Patterns hold the interpreter while they search, so in the gateway's process they would stop every
stream. A process that dies or misses the deadline is replaced at the next conversation.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

# Function from a conversation to itself without personal data, and the number of removed values
# by type. The data phase has it; the command line hands it to the gateway.
Scrub: TypeAlias = Callable[
    [Sequence[dict[str, str]]], tuple[Sequence[dict[str, str]], Mapping[str, int]]
]
# The process imports the scrubber, which takes a second on a busy machine.
_START_DEADLINE_S = 60.0
# A megabyte of ordinary text takes about a second.
_DEADLINE_S = 3.0


class ScrubbingFailed(Exception):
    """Raised when a conversation can't be scrubbed; the message holds nothing of its text."""


class ScrubbingProcess:
    """A process that scrubs one conversation after the other.

    Args:
        deadline_s: longest time that a conversation may take.
    """

    def __init__(self, deadline_s: float = _DEADLINE_S) -> None:
        self._deadline_s = deadline_s
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._is_up = False

    def start(self, scrub: Scrub) -> None:
        """Start the process, which imports the scrubber while others go on."""
        self._connection, theirs = Pipe()
        # An interrupt at the terminal does not reach another session: rows are scrubbed until the
        # gateway has drained. The end of the connection ends the process.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self._is_up = False
        self._connection.send((scrub, []))

    def scrub(
        self, scrub: Scrub, turns: Sequence[dict[str, str]]
    ) -> tuple[Sequence[dict[str, str]], Mapping[str, int]]:
        """Scrub a conversation, from one thread at a time.

        Args:
            scrub: the scrubber, which must be picklable.
            turns: the conversation.

        Raises:
            ScrubbingFailed: if the scrubber raised, died or took too long.
        """
        if self._process is None or self._process.poll() is not None:
            self.close()
            self.start(scrub)
        try:
            assert self._connection is not None
            if not self._is_up:
                _answer(self._connection, _START_DEADLINE_S)
                self._is_up = True
            self._connection.send((scrub, turns))
            answer = _answer(self._connection, self._deadline_s)
        except (OSError, EOFError) as error:
            self.close()
            late = isinstance(error, TimeoutError)
            raise ScrubbingFailed(str(error) if late else "its process ended") from None
        if isinstance(answer, str):
            raise ScrubbingFailed(answer)
        return answer

    def close(self) -> None:
        """Stop the process, whatever it does."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _answer(connection: Connection, deadline_s: float) -> Any:
    if not connection.poll(deadline_s):
        raise TimeoutError(f"it took over {deadline_s:g} s")
    return connection.recv()


def _serve(connection: Connection) -> None:
    """Scrub conversations until the other end is closed."""
    while True:
        try:
            scrub, turns = connection.recv()
        except EOFError:
            return
        try:
            scrubbed, counts = scrub(turns)
            answer: Any = (scrubbed, dict(counts))
        except Exception as error:  # its message may hold the text
            answer = type(error).__name__
        connection.send(answer)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
