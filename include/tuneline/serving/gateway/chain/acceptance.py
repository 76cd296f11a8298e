"""Whether an answer is accepted, where another upstream could answer instead.

Two measures of confidence are comparable between short and long answers: the mean log-probability
per token, in nats, and the weakest token. Thresholds have to be calibrated on validation rows of
the same model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneline.serving.gateway.attempt_status import AttemptStatus
from tuneline.serving.gateway.json_text import load_json
from tuneline.serving.gateway.upstream_config import LowConfidenceConfig
from tuneline.serving.protocol import SseParser, choices_of, mean_logprob

# Characters of all choices that are read while other requests wait.
_MOST_READ = 1 << 20


def is_low(values: Sequence[float], limits: LowConfidenceConfig, *, window: bool = False) -> bool:
    """Return True if an answer with these log-probabilities, in nats, should not be trusted.

    Without any the confidence is unknown, which is not low: otherwise an upstream that reports none
    would send every request to the fallback.
    """
    mean = mean_logprob(values)
    if mean is None:
        return False
    least = (limits.stream_min_mean_logprob if window else None) or limits.min_mean_logprob
    if mean < least:
        return True
    return limits.min_token_logprob is not None and min(values) < limits.min_token_logprob


@dataclass(frozen=True)
class Acceptance:
    """The limits of confidence, None for none, and what answers have to be as JSON."""

    limits: LowConfidenceConfig | None = None
    as_json: type | None = None

    @property
    def window(self) -> int:
        """The tokens of a stream that are held back and judged."""
        return self.limits.stream_window_tokens if self.limits else 0

    def of_reply(
        self, logprobs: Sequence[float], payload: Mapping[str, Any]
    ) -> AttemptStatus | None:
        """Return why a whole answer is not trusted, None if it is."""
        if self.as_json is not None:
            messages = [choice.get("message") for choice in choices_of(payload)]
            contents = [m.get("content") for m in messages if isinstance(m, dict)]
            if not _are_json(contents, self.as_json):
                return AttemptStatus.INVALID_JSON
        if self.limits is not None and is_low(logprobs, self.limits):
            return AttemptStatus.LOW_CONFIDENCE
        return None

    def of_window(
        self, logprobs: Sequence[float], whole: Sequence[bytes] | None
    ) -> AttemptStatus | None:
        """Return why a stream is not trusted by what was held back of it, None if it is.

        Args:
            whole: the events of a stream that has ended already; None if more are to come, of
                which nobody can say yet.
        """
        if self.as_json is not None and whole is not None and self.window:
            contents: dict[Any, str] = {}
            for data in whole:
                (stated,) = SseParser().feed(data)
                for choice in choices_of(load_json(stated)):
                    delta = choice.get("delta")
                    piece = delta.get("content") if isinstance(delta, dict) else None
                    if isinstance(piece, str):
                        place = choice.get("index")
                        contents[place] = contents.get(place, "") + piece
            if not _are_json(contents.values(), self.as_json):
                return AttemptStatus.INVALID_JSON
        if self.limits is not None and self.window and is_low(logprobs, self.limits, window=True):
            return AttemptStatus.LOW_CONFIDENCE
        return None


def json_asked(body: Mapping[str, Any]) -> type | None:
    """Return what an answer has to be as JSON, None for nothing; engines keep a schema."""
    asked = body.get("response_format")
    kind = asked.get("type") if isinstance(asked, dict) else None
    return {"json_object": dict, "json_schema": object}.get(str(kind))


def _are_json(contents: Iterable[Any], asked: type) -> bool:
    """Return True if each text is JSON as asked, or all are too long for the event loop to read."""
    # A call of a tool has no content; its arguments have a schema of their own.
    texts = [text for text in contents if isinstance(text, str) and text]
    if sum(map(len, texts)) > _MOST_READ:
        return True
    try:
        return all(isinstance(load_json(text), asked) for text in texts)
    except ValueError:
        return False
