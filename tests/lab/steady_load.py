"""Chat requests at a steady rate, each on its own connection, by a client that costs little."""

import http.client
import json
import threading
import time
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Asked:
    """A request: its status, or its connection's error; attempts and id; seconds; its end."""

    status: int | str
    attempts: str | None
    request_id: str | None
    seconds: float
    ended: float


class SteadyLoad:
    """Asks within its `with` block; all answers are there when the block ends."""

    def __init__(
        self, url: str, key: str, model: str, per_second: float, *, stream: bool = False
    ) -> None:
        self.answers: list[Asked] = []
        self._address = urlsplit(url).netloc
        self._headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        messages = [{"role": "user", "content": "hello there"}]
        asked = {"model": model, "messages": messages, "max_tokens": 8, "stream": stream}
        self._body = json.dumps(asked)
        self._pause = 1 / per_second
        self._stop = threading.Event()
        self._pacer = threading.Thread(target=self._pace)

    def __enter__(self):
        self._pacer.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._pacer.join()

    def _pace(self):
        threads, due = [], time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            threads.append(threading.Thread(target=self._ask))
            threads[-1].start()
            due += self._pause
        for thread in threads:
            thread.join()

    def _ask(self):
        began = time.perf_counter()
        connection = http.client.HTTPConnection(self._address, timeout=60)
        try:
            connection.request("POST", "/v1/chat/completions", self._body, self._headers)
            answer = connection.getresponse()
            answer.read()
            headers = answer.headers.get("x-tuneline-attempts"), answer.headers.get("x-request-id")
            found = answer.status, *headers
        except (OSError, http.client.HTTPException) as error:
            found = type(error).__name__, None, None
        finally:
            connection.close()
        self.answers.append(Asked(*found, time.perf_counter() - began, time.monotonic()))
