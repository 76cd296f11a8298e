"""Have a model behind an OpenAI-compatible endpoint vote on the pairs of a review.

Judges prefer an answer for its place more often than people do (Zheng et al., 2023, "Judging
LLM-as-a-Judge"). So every pair is shown twice, the second time with its sides swapped. A choice
that does not stay with its answer is a tie, and the share of pairs on which it stays is stated.
The votes inform and decide nothing; where people voted too, how far the judge agrees with them is
stated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tuneline.artifacts.evaluation import BOTH_BAD, CHOICES, Mark, ReviewPair
from tuneline.errors import TunelineError
from tuneline.harness.answers import find_object
from tuneline.harness.subjects import Endpoint
from tuneline.human_answers.ballots import all_pairs, cast, sheet_of
from tuneline.run import Run
from tuneline.serving.client import Messages

# Room for a short reason; a judge that thinks aloud before its answer needs more.
MAX_TOKENS = 400
_SWAPPED = {"A": "B", "B": "A"}
_CHOICE = re.compile(rf"\b(?:choice|answer|verdict)\W+({'|'.join(CHOICES)})\b", re.IGNORECASE)
_RULES = (
    "You judge two answers to the same request. {instructions} The order of the answers says "
    "nothing about them, and a longer answer is not a better one. Reply with one JSON object and "
    'nothing else: {{"reason": "one sentence", "choice": "A"}}, where choice is "A", "B", "tie" or '
    f'"{BOTH_BAD}".'
)


@dataclass(frozen=True)
class Judged:
    """What a judge made of the pairs.

    Attributes:
        pairs: pairs that were shown.
        marks: its votes, one for each pair that it gave a choice for in both orders.
    """

    pairs: int
    marks: tuple[Mark, ...]

    @property
    def steady(self) -> int:
        """Number of votes that stayed with their answer when the sides were swapped."""
        return sum(mark.steady is True for mark in self.marks)


def judge_pairs(run: Run, endpoint: Endpoint, *, asked_by: str) -> Judged:
    """Ask a judge about every pair of a review, in both orders, and store its votes.

    Args:
        run: the run, whose pairs are drawn.
        endpoint: the model.
        asked_by: the user who has it asked.

    Raises:
        UserError: if the pairs were not prepared.
        TunelineError: if the endpoint fails, or gives no pair a choice; nothing is stored then.
    """
    sheet = sheet_of(run)
    pairs = all_pairs(run, sheet)
    orders = [*pairs, *map(swapped, pairs)]
    requests = [messages_for(sheet.instructions, pair) for pair in orders]
    with endpoint.client() as client:
        results = client.complete_batch(
            requests, concurrency=endpoint.parallel, max_tokens=MAX_TOKENS
        )
    choices = [choice_in(result.text) for result in results]
    first, second = choices[: len(pairs)], choices[len(pairs) :]
    marks = [
        mark_of(pair.pair, one, other)
        for pair, one, other in zip(pairs, first, second, strict=True)
        if one and other
    ]
    if not marks:
        raise TunelineError(
            f"{endpoint.model} gave no choice for any of {len(pairs)} pairs (it wrote "
            f"{results[0].text[:80]!r}); choose a model that follows instructions"
        )
    cast(
        run,
        sheet.review_id,
        endpoint.model,
        "endpoint",
        marks,
        judge=True,
        imported_by=asked_by,
    )
    return Judged(len(pairs), tuple(marks))


def swapped(pair: ReviewPair) -> ReviewPair:
    """Return a pair with its sides swapped."""
    return pair.model_copy(update={"A": pair.B, "B": pair.A})


def messages_for(instructions: str, pair: ReviewPair) -> Messages:
    """Return the request about one pair."""
    shown = f"Request:\n{pair.prompt}\n\nAnswer A:\n{pair.A}\n\nAnswer B:\n{pair.B}"
    rules = _RULES.format(instructions=instructions)
    # One turn: some models have no place for a system turn.
    return [{"role": "user", "content": f"{rules}\n\n{shown}"}]


def choice_in(text: str) -> str | None:
    """Return the choice that a judge's answer states, None if it states none."""
    stated = (find_object(text) or {}).get("choice")
    if not isinstance(stated, str):
        named = _CHOICE.findall(text)
        stated = named[-1] if named else ""
    known = {choice.casefold(): choice for choice in CHOICES}
    return known.get(stated.strip().casefold())


def mark_of(pair: int, first: str, second: str) -> Mark:
    """Return the vote on a pair from the choices in both orders.

    Args:
        pair: the pair's number.
        first: the choice with the sides as they are.
        second: the choice with the sides swapped.
    """
    back = _SWAPPED.get(second, second)
    steady = first == back
    said = "" if steady else f"{first}, and {back} with the sides swapped"
    return Mark(pair=pair, choice=first if steady else "tie", comment=said, steady=steady)
