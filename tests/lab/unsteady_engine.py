"""An engine of the tests' own whose answers change for a known cause, over HTTP."""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from tests.lab.http_server import Handler, serving

from tuneline.serving.client import EngineClient


class Asked(SimpleNamespace):
    """What a fault may depend on.

    Attributes:
        question: its last turn.
        together: whether another request was under way meanwhile.
        start: number of the server's start, from 1.
        times: how often the question was asked before, since the first start.
    """


class UnsteadyEngine:
    """Answers with the JSON of an intent that follows from the question, unless a fault says no."""

    def __init__(
        self, fault: Callable[[Asked], bool], dies_after: int | None = None, reply: str = ""
    ) -> None:
        self.fault = fault
        # A text that it writes before the intent; a word is a token.
        self.reply = reply
        self.dies_after = dies_after
        self.starts = 0
        self.slots: list[int] = []
        self.requests = 0
        self._times: Counter[str] = Counter()

    @contextmanager
    def serve(self, _model: Any, _deployment: Any, *, parallel: int, **_: Any) -> Iterator[Any]:
        """Take the place of `asking.models.server_of`."""
        self.starts += 1
        self.slots.append(parallel)
        with serving(self._handler(self.starts, threading.Semaphore(parallel))) as url:
            yield SimpleNamespace(client=lambda: EngineClient(url, timeout=10.0))

    def _handler(self, start: int, slots: threading.Semaphore) -> type[Handler]:
        engine, under_way, lock = self, set[int](), threading.Lock()
        company: set[int] = set()

        class OfEngine(Handler):
            def do_POST(self) -> None:
                body = json.loads(self.body())
                with slots:
                    with lock:
                        engine.requests += 1
                        number = engine.requests
                        under_way.add(number)
                        if len(under_way) > 1:
                            company.update(under_way)
                    time.sleep(0.01)
                    with lock:
                        under_way.discard(number)
                        together = number in company
                if engine.dies_after is not None and number > engine.dies_after:
                    self.close_connection = True
                    return
                question = body["messages"][-1]["content"]
                answer = engine._answer(question, start, together, body["max_tokens"])
                self.answer(json.dumps(answer).encode())

        return OfEngine

    def _answer(self, question: str, start: int, together: bool, limit: int) -> dict[str, Any]:
        times = self._times[question]
        asked = Asked(question=question, together=together, start=start, times=times)
        self._times[question] += 1
        number = hashlib.sha256(question.encode()).digest()[0] % 3
        intent = ("billing", "login", "shipping")[number]
        answer = {"intent": "other" if self.fault(asked) else intent}
        words = json.dumps({"reply": self.reply, **answer} if self.reply else answer).split()
        text, end = " ".join(words[:limit]), "length" if len(words) > limit else "stop"
        return {
            "choices": [{"message": {"content": text}, "finish_reason": end}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 9},
        }
