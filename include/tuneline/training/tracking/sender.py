"""Send log entries to a server from a thread, so that training never waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from tuneline.errors import first_line

Entry = TypeVar("Entry")

# A curve that is a second late is still live; one request then carries several steps.
SEND_SECONDS = 1.0
# A server that is gone is asked again after 2, 4, 8, … seconds, at most after this many.
LONGEST_PAUSE_SECONDS = 30.0
# Longest wait at the end of training for entries that are still to be sent.
CLOSE_SECONDS = 15.0


class Sender(Generic[Entry]):
    """A queue and the thread that empties it. A failed entry stays and is sent again."""

    def __init__(
        self,
        send: Callable[[Sequence[Entry]], None],
        said: Callable[[str], None],
        *,
        at_once: int,
        pause: float = SEND_SECONDS,
    ) -> None:
        """Start the thread.

        Args:
            send: function that sends entries in order and raises if the server refuses them.
            said: function that takes a line when the server is lost, and one when it is back.
            at_once: largest number of entries in a request.
            pause: time between requests, in seconds.
        """
        self._send, self._said = send, said
        self._at_once, self._pause = at_once, pause
        self._waiting: list[Entry] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Queue an entry."""
        with self._lock:
            self._waiting.append(entry)

    def close(self) -> int:
        """Send the remaining entries, for `CLOSE_SECONDS` at most.

        Returns:
            The number of entries that could not be sent.
        """
        self._deadline = time.monotonic() + CLOSE_SECONDS
        self._closing.set()
        self._thread.join(CLOSE_SECONDS)
        with self._lock:
            return len(self._waiting)

    def _work(self) -> None:
        failures = 0
        while True:
            closing = self._closing.wait(self._wait_seconds(failures))
            failures = self._empty(failures)
            if closing and (not failures or time.monotonic() > self._deadline):
                return
            if closing:
                time.sleep(self._pause)

    def _wait_seconds(self, failures: int) -> float:
        # The exponent is bounded, so that the power stays a float.
        return float(min(self._pause * 2 ** min(failures, 10), LONGEST_PAUSE_SECONDS))

    def _empty(self, failures: int) -> int:
        """Send all waiting entries, until a request fails.

        Returns:
            The number of failures in a row.
        """
        while True:
            with self._lock:
                batch = self._waiting[: self._at_once]
            if not batch:
                return failures
            try:
                self._send(batch)
            except Exception as error:  # whatever breaks, training goes on
                if not failures:
                    self._said(f"is lost ({short_reason(error)}); training goes on, metrics wait")
                return failures + 1
            with self._lock:
                del self._waiting[: len(batch)]
            if failures:
                self._said("is back, what waited was sent")
            failures = 0


def short_reason(error: BaseException) -> str:
    """Return the first line of a tracker's error, cut to 200 characters."""
    return first_line(error)[:200]
