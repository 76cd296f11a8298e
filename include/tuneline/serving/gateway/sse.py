"""Server-sent events as OpenAI-style streams use them (WHATWG HTML, section 9.2)."""

from __future__ import annotations

DONE = b"[DONE]"


class SseParser:
    """Splits a byte stream into the `data` of its events, independent of its chunks.

    Comments (keep-alives) and fields other than `data` are dropped.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the events that a chunk completes, each as its data lines joined by newlines."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        events = []
        for ended in lines:
            line = ended.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events


def event(data: bytes) -> bytes:
    """Return an event as it is sent; the data must hold no newline."""
    return b"data: " + data + b"\n\n"
