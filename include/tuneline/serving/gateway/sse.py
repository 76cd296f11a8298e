"""Server-sent events as OpenAI-style streams use them (WHATWG HTML, section 9.2)."""

from __future__ import annotations

DONE = b"[DONE]"
# Far more than a token with twenty alternatives, or the arguments of a tool in one piece.
LONGEST_EVENT = 1_000_000


class SseParser:
    """Splits a byte stream into the `data` of its events, independent of its chunks.

    Comments (keep-alives) and fields other than `data` are dropped.
    """

    def __init__(self) -> None:
        # The pieces of a line that has not ended, and the lines of an event that has not.
        self._pieces: list[bytes] = []
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the events that a chunk completes, each as its data lines joined by newlines.

        Raises:
            ValueError: if an event is longer than `LONGEST_EVENT`.
        """
        events = []
        first, *others = chunk.split(b"\n")
        self._take(first)
        for piece in others:
            line = b"".join(self._pieces).removesuffix(b"\r")
            self._pieces.clear()
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                self._data.clear()
                self._size = 0
            self._take(piece)
        return events

    def _take(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece) + 1
        if self._size > LONGEST_EVENT:
            raise ValueError(f"an event has more than {LONGEST_EVENT:,} bytes")


def event(data: bytes) -> bytes:
    """Return an event as it is sent."""
    return b"data: " + data.replace(b"\n", b"\ndata: ") + b"\n\n"
