"""The usage of a request with several answers, which engines report in two ways.

vLLM reports all of them together. llama.cpp reports each by itself: a stream has a report for
each, a whole answer only that of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuneline.serving.gateway.protocol import Usage


class UsageReports:
    """Adds up what an engine reports.

    Args:
        choices: number of choices that a request asks for, over all of its prompts.
        prompts: number of its prompts.

    Attributes:
        of_one_choice: True if what was reported leaves out the other choices.
    """

    def __init__(self, choices: int, prompts: int) -> None:
        self._choices = choices
        self._each = choices // prompts
        self._ends: list[Usage] = []
        self.of_one_choice = False

    def add(self, usage: Usage, *, at_an_end: bool) -> Usage:
        """Return the usage as far as it is known with one more report.

        Args:
            usage: the report.
            at_an_end: True if it came at the end of a choice of a stream, or after one.
        """
        if at_an_end:
            self._ends.append(usage)
        # One report more than choices is that of an engine which adds up by itself.
        if len(self._ends) != self._choices:
            return usage
        # Each prompt was reported with each of its choices, and read once.
        return Usage(
            sum(end.prompt_tokens for end in self._ends) // self._each,
            sum(end.completion_tokens for end in self._ends),
            sum(end.cached_tokens for end in self._ends) // self._each,
        )


def is_of_one_choice(answer: Mapping[str, Any]) -> bool:
    """Return True if the usage of a whole answer with several choices is only that of one.

    It is llama.cpp's, known by its `timings`.
    """
    return "timings" in answer
