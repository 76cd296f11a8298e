"""What an answer is judged by, where another upstream could answer instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneline.serving.gateway import json_text
from tuneline.serving.gateway.confidence import is_low
from tuneline.serving.gateway.fallback_config import LowConfidenceConfig
from tuneline.serving.gateway.json_form import FormJudge, JsonForm
from tuneline.serving.gateway.outcome import Outcome
from tuneline.serving.gateway.protocol import choices_of
from tuneline.serving.gateway.sse import SseParser


@dataclass(frozen=True)
class Doubts:
    """The limits of confidence and the form of JSON; None judges nothing.

    Attributes:
        judge: who holds a form against an answer.
    """

    limits: LowConfidenceConfig | None = None
    form: JsonForm | None = None
    judge: FormJudge | None = None

    @property
    def window(self) -> int:
        """The tokens of a stream that are held back and judged."""
        return self.limits.stream_window_tokens if self.limits else 0

    async def of_answer(
        self, logprobs: Sequence[float], payload: Mapping[str, Any]
    ) -> Outcome | None:
        """Return why a whole answer is not trusted, None if it is.

        Args:
            logprobs: log-probability of each of its tokens, in nats.
            payload: the answer.
        """
        if self.form is not None:
            messages = [choice.get("message") for choice in choices_of(payload)]
            contents = [m.get("content") for m in messages if isinstance(m, dict)]
            if not await self._all_fit(contents):
                return Outcome.INVALID_JSON
        if self.limits is not None and is_low(logprobs, self.limits):
            return Outcome.LOW_CONFIDENCE
        return None

    async def of_beginning(
        self, logprobs: Sequence[float], whole: Sequence[bytes] | None
    ) -> Outcome | None:
        """Return why a stream is not trusted by what was held back of it, None if it is.

        Args:
            logprobs: log-probability of each token so far, in nats.
            whole: the events of a stream that has ended already; None if more are to come, whose
                form nobody can judge yet.
        """
        if self.form is not None and whole is not None and self.window:
            contents: dict[Any, str] = {}
            for data in whole:
                (stated,) = SseParser().feed(data)
                for choice in choices_of(json_text.loads(stated)):
                    delta = choice.get("delta")
                    piece = delta.get("content") if isinstance(delta, dict) else None
                    if isinstance(piece, str):
                        place = choice.get("index")
                        contents[place] = contents.get(place, "") + piece
            if not await self._all_fit(list(contents.values())):
                return Outcome.INVALID_JSON
        if self.limits is not None and self.window and is_low(logprobs, self.limits, window=True):
            return Outcome.LOW_CONFIDENCE
        return None

    async def _all_fit(self, contents: Sequence[Any]) -> bool:
        # A call of a tool has no content; its arguments have a schema of their own.
        texts = [text for text in contents if isinstance(text, str) and text]
        if self.form is None or self.judge is None or not texts:
            return True
        return await self.judge.accepts(self.form, texts)
