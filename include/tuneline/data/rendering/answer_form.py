"""How a chat template opens and ends an answer, read off two short conversations.

What ends an answer is what the template writes behind it whether or not more turns follow. It has
to end in a token of the added vocabulary, as `is_chat_template_stop_token_trained` of TRL asks of
its training templates. TRL itself takes seconds to import, and knows templates by their whole text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from tuneline.data.tables.rows import Message
from tuneline.models.tool_turns import to_plain

_ASKED, _ANSWERED = ("First thing asked", "Second thing asked"), ("One answer", "Other answer")
_NUMBER = "91735"
PLAIN_TURNS: list[Message] = [
    {"role": role, "content": text}
    for said in zip(_ASKED, _ANSWERED, strict=True)
    for role, text in zip(("user", "assistant"), said, strict=True)
]
_FUNCTION = {"name": "find", "arguments": {"number": int(_NUMBER)}}
TURNS_WITH_A_CALL = to_plain(
    [
        PLAIN_TURNS[0],
        {"role": "assistant", "content": "", "tool_calls": [{"function": _FUNCTION}]},
        {"role": "tool", "content": _ASKED[1]},
        PLAIN_TURNS[3],
    ],
    [{"type": "function", "function": {"name": "find", "description": "Find.", "parameters": {}}}],
)
NO_END = "no_end_token: the model's chat template writes no token that ends an answer"


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What stands around an answer.

    Attributes:
        opened: the thought that the question opens though no switch closes it, as `<think>`.
        closed: its empty end, which the answer begins with.
        lead: what the model writes before the text of an answer, `closed` among it.
        end: what it writes behind it, which ends in the token that ends an answer; "" if nothing.
        added: what has to be put behind a row, where the template leaves the end to the next turn.
        after: what follows the end in a row.
        stays: True if an answer is still rendered as the model gave it once more turns follow.
    """

    opened: str = ""
    closed: str = ""
    lead: str = ""
    end: str = ""
    added: str = ""
    after: str = ""
    stays: bool = True

    @property
    def completes(self) -> bool:
        """True if rows get something that the template does not write."""
        return bool(self.opened or self.added)

    def complete(self, text: str, asked: str) -> str:
        """Return a rendered row with the empty end of its thought, and its own end."""
        head = asked.removesuffix(self.opened)
        if self.opened and not text.startswith(asked) and text.startswith(head):
            text = asked + self.closed + text[len(head) :]
        return text + self.added


def read_form(
    render: Callable[..., str], template: str, tokenizer: Any, turns: Sequence[Message]
) -> AnswerForm:
    """Read the form of answers off a template.

    Args:
        render: takes turns and whether to ask for an answer; ValueError if the template refuses.
        template: its text.
        tokenizer: tells the added vocabulary.
        turns: PLAIN_TURNS, or TURNS_WITH_A_CALL.
    """
    calls = turns is TURNS_WITH_A_CALL
    said = _NUMBER if calls else _ANSWERED[0]
    try:
        asked, whole = render(turns[:-3], ask=True), render(turns[:-2])
    except ValueError:
        return AnswerForm()  # each row gets the template's own words
    try:
        asked_again, longer = render(turns[:-1], ask=True), render(turns)
    except ValueError:
        asked_again = longer = ""
    if said not in whole:
        return AnswerForm()  # a template that writes no calls
    tail = whole.rpartition(said)[2]
    following = longer.partition(said)[2].partition(_ASKED[1])[0]
    cut = _cutter(tokenizer, special=calls)
    if calls:
        # What closes a call is as much its text as the arguments are.
        closing = next((part for part in cut(tail)[0][:1] if part not in cut(tail)[1]), "")
        tail, following = tail.removeprefix(closing), following.removeprefix(closing)
    end, added = _end_of(tail, following, cut)
    opened, closed = _thought(asked, whole, template)
    form = AnswerForm(opened, closed, added=added)
    completed = form.complete(whole, asked)
    after = (tail + added)[len(end) :]
    return AnswerForm(
        opened,
        closed,
        completed[len(asked) :].partition(said)[0],
        end,
        added,
        after,
        longer.startswith(asked_again)
        and form.complete(longer, asked_again).startswith(completed.removesuffix(after)),
    )


def moves_system(render: Callable[..., str]) -> bool:
    """Return True if a template writes the system turn into a question that is the last turn alone.

    Mistral's does: a server gives it with the last question, and a row that ends in an answer has
    none.
    """
    turns: list[Message] = [{"role": "system", "content": "Be brief."}, *PLAIN_TURNS[:2]]
    try:
        asked, whole = render(turns[:-1], ask=True), render(turns)
    except ValueError:
        return False
    return turns[0]["content"] in asked and turns[0]["content"] not in whole


def with_prompt(text: str, asked: str, question: str) -> str:
    """Return a row whose last answer follows what it is asked with."""
    behind = f"{question}{asked.rpartition(question)[2]}"
    known = question in asked and behind in text
    return asked + text.rpartition(behind)[2] if known else text


def _cutter(tokenizer: Any, *, special: bool) -> Callable[[str], tuple[list[str], set[str]]]:
    """Return a function that cuts a text around tokens of the added vocabulary, and names these."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    added |= {*tokenizer.all_special_tokens, *(() if special else tokenizer.get_added_vocab())}
    longest_first = sorted(added, key=lambda token: (-len(token), token))
    pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if added else None
    return lambda text: ([*filter(None, pattern.split(text) if pattern else [text])], added)


def _end_of(
    tail: str, following: str, cut: Callable[[str], tuple[list[str], set[str]]]
) -> tuple[str, str]:
    """Return the text that ends an answer, and what of it the template leaves to the next turn."""
    (last, added), (earlier, _) = cut(tail), cut(following)
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(last, earlier, strict=False))
    # Where nothing is alike, the last answer has an end of its own.
    for parts in ([part for part, _ in alike], last):
        while parts and parts[-1] not in added:
            if parts.pop().strip():
                return "", ""
        if parts:
            return "".join(parts), ""
    rest = following.removeprefix(tail)
    first = next((part for part in cut(rest)[0] if part.strip()), None)
    if tail.strip() or first not in added or not following.startswith(tail):
        return "", ""
    ending = rest[: rest.index(first) + len(first)]
    return tail + ending, ending


def _thought(asked: str, whole: str, template: str) -> tuple[str, str]:
    """Return the thought that a question opens, which no answer closes, and its empty end."""
    head = next(n for n in range(len(asked), -1, -1) if whole.startswith(asked[:n]))
    opened = asked[head:]
    tag = opened.strip()
    closing = f"{tag[:1]}/{tag[1:]}"
    if not tag or not re.fullmatch(r"[<\[]\w+[>\]]", tag) or closing not in template:
        return "", ""
    blank = opened[len(opened.rstrip()) :]
    return opened, f"{blank}{closing}{blank * 2}"
