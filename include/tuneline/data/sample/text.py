"""Write the messages of the sample dataset from phrases, slots and sentence frames, by seed.

A message is a request (which alone decides the intent), by chance with a greeting, a sentence of
context, a denial ("I don't want my money back.") and a closing around it, then with typos and in
lower case. Contexts and denials use the words of the other intents, so that no single word gives an
intent away.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeVar

from tuneline.data.sample.similarity import NearIndex, Views

T = TypeVar("T")

# Near-duplicates start at 0.8. Other rows keep a margin from it, so that another normalisation, or
# scrubbing, does not turn them into near-duplicates.
CLEAN_SIMILARITY = 0.72
MAX_TRIES = 400
TRIES_PER_ASK = 20
# Tokens are estimated without a tokenizer: a word or a mark is about one, an order number seven.
TOKENS_PER_ORDER = 7
MESSAGE_TOKENS = (10, 28)


class Draw:
    """A source of random choices that are the same on every platform and Python version.

    Only `random.Random.random` is used, the one method whose sequence for a seed Python promises
    to keep.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - reproducible on purpose

    def below(self, n: int) -> int:
        """Return an integer from 0 to n - 1."""
        return int(self._random.random() * n)

    def chance(self, p: float) -> bool:
        """Return True with probability p."""
        return self._random.random() < p

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of the choices."""
        return choices[self.below(len(choices))]

    def shuffled(self, choices: Sequence[T]) -> list[T]:
        """Return the choices in random order (Fisher-Yates)."""
        out = list(choices)
        for i in range(len(out) - 1, 0, -1):
            j = self.below(i + 1)
            out[i], out[j] = out[j], out[i]
        return out

    def text(self, alphabet: str, n: int) -> str:
        """Return n characters of the alphabet."""
        return "".join(self.pick(alphabet) for _ in range(n))


@dataclass(frozen=True)
class Ask:
    """A request with open slots, and the promises that the desk may answer it with."""

    text: str
    acts: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One exchange: a customer's message and the desk's answer."""

    intent: str
    user: str
    reply: str

    def answer(self) -> str:
        """Return the assistant's turn, a JSON object without spaces (it saves tokens)."""
        return json.dumps(
            {"intent": self.intent, "reply": self.reply}, ensure_ascii=False, separators=(",", ":")
        )

    def messages(self, system: str) -> list[dict[str, str]]:
        """Return the row in the OpenAI messages form."""
        return [
            {"role": "system", "content": system},
            {"role": "user", "content": self.user},
            {"role": "assistant", "content": self.answer()},
        ]


def load_phrases() -> dict[str, Any]:
    """Return the phrase file that ships with the package."""
    import yaml

    text = resources.files("tuneline.data.sample").joinpath("phrases.yaml").read_text("utf-8")
    phrases: dict[str, Any] = yaml.safe_load(text)
    return phrases


def system_prompt(intents: Sequence[str]) -> str:
    """Return the system prompt, which names the intents and the form of the answer."""
    return f'Answer with JSON {{"intent":"...","reply":"..."}}. Intents: {", ".join(intents)}.'


def estimated_tokens(text: str) -> int:
    """Return an estimate of the number of tokens of an English message, without a tokenizer."""
    orders = len(re.findall(r"\b[A-Z]-\d{5}\b", text, re.IGNORECASE))
    plain = re.sub(r"\b[A-Za-z]-\d{5}\b", "", text)
    return len(re.findall(r"\w+|[^\w\s]", plain)) + TOKENS_PER_ORDER * orders


def lower_first(sentence: str) -> str:
    """Return the sentence with a small first letter, unless it starts with the word I."""
    if re.match(r"I\b", sentence):
        return sentence
    return sentence[:1].lower() + sentence[1:]


def typo(text: str, draw: Draw) -> str:
    """Return the text with one slip of the keyboard in a word of five letters or more."""
    spots = list(re.finditer(r"[A-Za-z]{5,}", text))
    if not spots:
        return text
    word = draw.pick(spots)
    at = word.start() + 1 + draw.below(len(word.group()) - 3)
    a, b = text[at], text[at + 1]
    swapped = text[:at] + b + a + text[at + 2 :]
    return draw.pick(
        [swapped, text[: at + 1] + text[at + 2 :], text[: at + 1] + a + text[at + 1 :]]
    )


class Writer:
    """A writer of rows that are unlike all rows it wrote before."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.phrases = load_phrases()
        self.intents: list[str] = list(self.phrases["intents"])
        self.system = system_prompt(self.intents)
        self.index = NearIndex()
        self.numbers: dict[Row, int] = {}
        self._asks: dict[str, list[Ask]] = {intent: [] for intent in self.intents}

    def shares(self) -> dict[str, float]:
        """Return the intended share of each intent."""
        return {name: float(spec["share"]) for name, spec in self.phrases["intents"].items()}

    def slots(self) -> dict[str, str]:
        """Return one value for each slot."""
        values = {name: self.draw.pick(words) for name, words in self.phrases["slots"].items()}
        values["order"] = self.draw.text("ABCDEFGHKLMPRT", 1) + "-" + self.draw.text("123456789", 5)
        return values

    def _ask(self, intent: str) -> Ask:
        """Return the requests of an intent in turn, so that each is used about equally often."""
        if not self._asks[intent]:
            topics = self.phrases["intents"][intent]["topics"]
            asks = [Ask(text, tuple(topic["acts"])) for topic in topics for text in topic["asks"]]
            self._asks[intent] = self.draw.shuffled(asks)
        return self._asks[intent].pop()

    def _user(self, intent: str, ask: Ask, slots: Mapping[str, str]) -> str:
        draw, spec = self.draw, self.phrases["intents"][intent]
        parts = [ask.text]
        # The shares are tuned: a 135M model has to learn the task from some 300 rows, and words
        # alone must not be enough.
        if draw.chance(0.1):
            denied = draw.pick(self.phrases["denials"][draw.pick(spec["deny"])])
            parts.insert(draw.below(2), denied)
        if draw.chance(0.45):
            sentences = spec["contexts"] if draw.chance(0.3) else self.phrases["openings"]
            parts.insert(0, draw.pick(sentences))
        if draw.chance(0.2):
            parts.append(draw.pick(self.phrases["closings"]))
        if draw.chance(0.25):
            parts[0] = draw.pick(self.phrases["greetings"]) + ", " + lower_first(parts[0])
        text = " ".join(parts).format(**slots)
        if draw.chance(0.1):
            text = typo(text, draw)
        if draw.chance(0.15):
            text = text.lower()
        if draw.chance(0.1):
            text = text.rstrip(".?!")
        return text

    def reply(self, acts: Sequence[str], user: str, slots: Mapping[str, str]) -> str:
        """Return an answer that mentions only what the message mentioned."""
        known = []
        for act in acts:
            named = re.findall(r"\{(\w+)\}", act)
            if all(slots[name].lower() in user.lower() for name in named):
                known.append(act)
        return f"{self.draw.pick(self.phrases['leads'])} {self.draw.pick(known)}.".format(**slots)

    def views(self, row: Row) -> Views:
        """Return the views of a row that are compared: message, exchange, and all three turns."""
        return self.index.views(
            row.user, f"{row.user} {row.answer()}", f"{self.system} {row.user} {row.answer()}"
        )

    def add(self, row: Row) -> Row:
        """Take a row into the index."""
        self.numbers[row] = self.index.add(self.views(row))
        return row

    def is_new(self, row: Row) -> bool:
        """Return True if no row so far is similar to this one."""
        return self.index.nearest(self.views(row)) < CLEAN_SIMILARITY

    def row(self, intent: str, carrier: str = "", boilerplate: bool = False) -> Row:
        """Write a row that is unlike all before.

        Args:
            intent: intent of the message.
            carrier: a sentence for the end of the message.
            boilerplate: True if the answer is to end in the planted phrase.

        Raises:
            RuntimeError: if the phrases do not yield another different message.
        """
        for attempt in range(MAX_TRIES):
            if attempt % TRIES_PER_ASK == 0:
                ask = self._ask(intent)
            slots = self.slots()
            user = self._user(intent, ask, slots)
            low, high = MESSAGE_TOKENS
            if not low <= estimated_tokens(user) <= high:
                continue
            if carrier and user[-1] not in ".?!":
                user += "."
            # An order number and the boilerplate together would not fit into 26 tokens.
            acts = [act for act in ask.acts if not (boilerplate and "{" in act)]
            reply = self.reply(acts, user, slots)
            if boilerplate:
                reply = f"{reply} {self.phrases['boilerplate']['text']}"
            row = Row(intent, f"{user} {carrier}".strip(), reply)
            if self.is_new(row):
                return self.add(row)
        raise RuntimeError(f"no new message for intent {intent} after {MAX_TRIES} tries")
