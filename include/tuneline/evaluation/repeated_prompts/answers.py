"""Where two answers to the same prompt part, and the other forms that replicas may serve.

The forms are the merged model, the adapter next to its base, and quantised variants.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from tuneline.artifacts.deployment import REFERENCE
from tuneline.artifacts.training import MERGED
from tuneline.asking.answer_values import structure_of
from tuneline.asking.models import Candidate, engine_of, run_adapter, unquantised, untuned
from tuneline.data.conversations.answers import answer_object
from tuneline.errors import TunelineError, first_line
from tuneline.evaluation.repeated_prompts.asking import MODES, Repeats
from tuneline.serving.engines.engine import ServedModel
from tuneline.step_context import StepContext

View = Callable[[str], str]
Tokens = Callable[[str], Sequence[str]]

END = "the end of the answer"
# What may be missing where an object was cut behind a key, a colon or a comma.
_VALUES = ("", ": null", " null")


@dataclass(frozen=True)
class Flip:
    """Two answers to one prompt that differ, first at their `token`, from 1.

    `was` is that token in the first answer, which the prompt got alone; `became` in the other.
    """

    row_id: str
    mode: str
    token: int
    was: str
    became: str

    def text(self) -> str:
        """Return the flip as a part of a sentence."""
        return (
            f"{self.row_id} {_WORDS[self.mode]}, token {self.token}: {_quoted(self.was)} became "
            f"{_quoted(self.became)}"
        )


_WORDS = dict(zip(MODES, ("alone", "in a batch", "after a restart"), strict=True))


def _quoted(token: str) -> str:
    return token if token == END else repr(token)


def view_of(label_field: str | None, cut: Collection[str]) -> View:
    """Return the structure of answers as a function; `cut` ones are closed first."""
    return lambda text: structure_of(closed(text) if text in cut else text, label_field)


def closed(text: str) -> str:
    """Close the strings, lists and objects that a cut JSON answer leaves open.

    An answer that even then is not a JSON object is returned as it is.
    """
    closers: list[str] = []
    quoted = escaped = False
    for letter in text:
        if quoted:
            quoted, escaped = letter != '"' or escaped, letter == "\\" and not escaped
        elif letter == '"':
            quoted = True
        elif letter in "{[":
            closers.append("}" if letter == "{" else "]")
        elif letter in "}]" and closers:
            closers.pop()
    if not closers:
        return text
    begun = (text[:-1] if escaped else text) + '"' if quoted else text.rstrip().rstrip(",")
    end = "".join(reversed(closers))
    found = (begun + value + end for value in _VALUES)
    return next((whole for whole in found if answer_object(whole) is not None), text)


def label_reach(text: str, label_field: str) -> float:
    """Return the share of a JSON answer with which its label is there."""
    label = json.dumps((answer_object(text) or {}).get(label_field), ensure_ascii=False)
    behind = text.partition(f'"{label_field}"')[2].partition(label)[2]
    return 1 - len(behind) / max(1, len(text))


def shows_label(text: str, label_field: str) -> bool:
    """Return True if a cut JSON answer has its whole label: one letter less has the same."""
    first, second = (answer_object(closed(each)) or {} for each in (text, text[:-1]))
    return (label := first.get(label_field)) is not None and label == second.get(label_field)


def flipped_in(repeats: Sequence[Repeats], mode: str, view: View) -> list[str]:
    """Return the ids of the rows whose answers in a mode differ from their reference."""
    return [
        entry.row_id
        for entry in repeats
        if any(view(text) != view(entry.alone[0]) for text in entry.compared(mode))
    ]


def first_flip(repeats: Sequence[Repeats], view: View, tokens: Tokens) -> Flip | None:
    """Return the first flip of a view of the answers, None without one."""
    for mode in MODES:
        for entry in repeats:
            reference = entry.alone[0]
            for text in entry.compared(mode):
                if view(text) != view(reference):
                    number, was, became = first_difference(tokens(reference), tokens(text))
                    return Flip(entry.row_id, mode, number, was, became)
    return None


def first_difference(first: Sequence[str], second: Sequence[str]) -> tuple[int, str, str]:
    """Return the number of the first token that differs, from 1, and it in both."""
    for number, (was, became) in enumerate(zip_longest(first, second, fillvalue=END), 1):
        if was != became:
            return number, was, became
    raise ValueError("equal answers have no differing token")


def tokens_of(ctx: StepContext) -> Callable[[str], list[str]]:
    """Return a function that splits an answer into its tokens."""
    from tuneline.models.base_model import load_tokenizer

    tokenizer = load_tokenizer(MERGED.fetch(ctx))

    def split(text: str) -> list[str]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return [tokenizer.decode([token]) for token in ids]

    return split


MERGED_F16, APART = "merged_f16", "apart"


@dataclass(frozen=True)
class ServedForm:
    """A form of the tuned model that does not ship; no model if it was not tried."""

    name: str
    model: ServedModel | None
    why_not: str = ""


def other_forms(ctx: StepContext, chosen: Candidate, *, wanted: bool) -> list[ServedForm]:
    """Return every form that the run knows of but the one that ships.

    Quantised variants that were not chosen are no longer in the run. An engine that compiles has
    only the form that it was built of.
    """

    def apart(ctx: StepContext) -> ServedModel:
        # The adapter first: without one no base has to be made.
        adapter = run_adapter(ctx, engine_of(ctx))
        return untuned(ctx).beside(adapter)

    shipped = MERGED_F16 if chosen.variant == REFERENCE else chosen.variant
    if chosen.model.adapter is not None:
        shipped = APART
    why_not = "" if wanted else "evaluation.determinism_forms is `shipped`"
    if engine_of(ctx).form == "engine":
        why_not = "the engine is built of one form"
    found = []
    for name, make in {MERGED_F16: unquantised, APART: apart}.items():
        if name == shipped:
            continue
        try:
            model = None if why_not else make(ctx)
            found.append(ServedForm(name, model, why_not))
        except TunelineError as error:
            found.append(ServedForm(name, None, first_line(error)))
    for name in ctx.config.deployment.measured_variants:
        if name not in (chosen.variant, REFERENCE):
            found.append(ServedForm(name, None, "its bytes were not kept in the run"))
    return found
