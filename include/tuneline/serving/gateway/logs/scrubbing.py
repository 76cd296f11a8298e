"""Scrub texts in another process, with a deadline for each batch of conversations.

Patterns hold the interpreter while they search, and a model takes a core, so in the gateway's
process they would stop every stream. A model reads several conversations at less cost than one
after the other. A process that dies or misses the deadline is replaced at the next batch.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

from tuneline.machine.child_environment import bare_environment

Conversation: TypeAlias = Sequence[dict[str, str]]
ScrubbedConversation: TypeAlias = tuple[Conversation, Mapping[str, int]]
# Function from conversations to themselves without personal data, each with the number of removed
# values by type. The data phase has it; the command line hands it to the gateway.
Scrub: TypeAlias = Callable[[Sequence[Conversation]], Sequence[ScrubbedConversation]]
# The process imports the scrubber and loads its model, which takes seconds on a busy machine.
_START_DEADLINE_S = 60.0
# A model reads over 10,000 characters a second on an idle core.
_DEADLINE_S, _CHARS_PER_S, _MOST_S = 3.0, 2_000, 60.0


class ScrubbingFailed(Exception):
    """Raised when conversations can't be scrubbed; the message holds nothing of their text."""


class ScrubbingProcess:
    """A process that scrubs one batch of conversations after the other, each within a deadline."""

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
            # What reads texts from outside gets no secret.
            env=bare_environment(),
            start_new_session=True,
        )
        theirs.close()
        self._is_up = False
        self._connection.send((scrub, []))

    def scrub(self, scrub: Scrub, batch: Sequence[Conversation]) -> Sequence[ScrubbedConversation]:
        """Scrub conversations, from one thread at a time.

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
            self._connection.send((scrub, batch))
            size = sum(len(turn["content"]) for turns in batch for turn in turns)
            answer = _answer(self._connection, min(self._deadline_s + size / _CHARS_PER_S, _MOST_S))
        except (OSError, EOFError) as error:
            self.close()
            late = isinstance(error, TimeoutError)
            raise ScrubbingFailed(str(error) if late else "its process ended") from None
        if isinstance(answer, str):
            raise ScrubbingFailed(answer)
        found: Sequence[ScrubbedConversation] = answer
        return found

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
        raise TimeoutError(f"it took over {deadline_s:.1f} s")
    return connection.recv()


def _serve(connection: Connection) -> None:
    """Scrub batches until the other end is closed."""
    while True:
        try:
            scrub, batch = connection.recv()
        except EOFError:
            return
        try:
            answer: Any = [(turns, dict(counts)) for turns, counts in scrub(batch)]
        except Exception as error:  # its message may hold the text
            answer = type(error).__name__
        connection.send(answer)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
