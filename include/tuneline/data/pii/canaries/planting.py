"""Plant made-up values into rows of a dataset, in its register.

Where the dataset asks for a value of the kind, the canary is the answer; where it holds numbers or
addresses, the canary takes the place of one; elsewhere a few words lead to it, in a turn of the
dataset or as a whole turn. The words take the case, punctuation and slips of the turns around
them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from tuneline.data.pii.canaries.canary import (
    ANSWER,
    BARE,
    INSERTED,
    MESSAGE,
    PARTIAL,
    REPLACED,
    SPLIT,
    Canary,
    Token,
    Value,
    group_name,
    identifying,
)
from tuneline.data.pii.canaries.carriers import Carriers, Spot, find_carriers
from tuneline.data.pii.canaries.kinds import DIALOGUE, KINDS, NEEDS_WORDS, planted_groups
from tuneline.data.pii.canaries.lists import lists
from tuneline.data.pii.canaries.loose import loose_ways
from tuneline.data.pii.canaries.register import Register, measure_register, misspell
from tuneline.data.pii.languages import ENGLISH
from tuneline.data.tables.rows import Message

# The register is measured on at most this many rows.
MEASURED_ROWS = 3_000
# Fewer places of a sort would make canaries that are hardly more than copies of each other.
LEAST_SPOTS = 3
# A value is drawn among this many, see `_drawn`.
CANDIDATES = 12
# Turns of a long conversation that go with the planted one.
TURNS_BEFORE, TURNS_AFTER = 4, 1
# Share of inserted values that stand in a plain answer of the assistant.
_IN_REPLIES = 0.12
# Share of values in their own words, as a turn of their own, among those that are not bare.
_OWN_TURN = 0.25
# Share of the values with the shape of a number that take the place of one of the dataset.
_IN_PLACE = 0.3
_MARKS = re.compile(r"[,.;:!?]")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


@dataclass(frozen=True)
class _Given:
    """A value with its form and the sort of place where it stands."""

    form: str
    place: str
    value: Value


@dataclass
class _Planter:
    """Plants the canaries of one group."""

    kind: str
    language: str
    register: Register
    carriers: Carriers
    draw: Random

    def __post_init__(self) -> None:
        self.words = lists("phrases")[self.language]
        self.own = self.words["kinds"].get(self.kind, {})
        self.entry = KINDS[self.kind]
        self.turns = self.carriers.turns[self.language] or [
            spot for spots in self.carriers.turns.values() for spot in spots
        ]
        self.replies_to = [spot for spot in self.turns if self._follows_reply(spot)]
        self.loose = loose_ways(self.kind, self.language, self.register)

    def plant(self) -> Canary:
        """Plant a value in one of the forms of its kind."""
        form, value = self._drawn()
        if form == SPLIT:
            return self._split(_Given(form, ANSWER, value))
        if form == BARE:
            return self._bare(value)
        given = _Given(form, self._place(form), value)
        if given.place == ANSWER:
            spot = self.draw.choice(self._answers())
            return self._at(given, spot, self._answer(spot))
        if given.place == REPLACED:
            return self._at(given, self.draw.choice(self._likes()), "{}")
        spot = self.draw.choice(self.turns)
        if given.place == MESSAGE:
            return self._at(given, spot, self._leading(form, spot))
        if self.carriers.replies and self.draw.random() < _IN_REPLIES:
            spot = self.draw.choice(self.carriers.replies)
        return self._inserted(given, spot)

    def _drawn(self) -> tuple[str, Value]:
        """Draw a form and a value, with a probability in proportion to its tokens.

        What leaks is counted in words and numbers, as on labelled text, so a value of many of them
        weighs more.
        """
        shares = self.entry.shares(self.register)
        # Keys and the like are of one size.
        count = CANDIDATES if self.entry.forms else 1
        forms = self.draw.choices(list(shares), weights=list(shares.values()), k=count)
        values = [self.entry.make(self.draw, form, self.register, self.language) for form in forms]
        sizes = [len(identifying(v.text, 0, len(v.text), v.public)) for v in values]
        return self.draw.choices(list(zip(forms, values, strict=True)), weights=sizes)[0]

    def _answers(self) -> list[Spot]:
        return self.carriers.answers.get(group_name(self.kind, self.language), [])

    def _likes(self) -> list[Spot]:
        """Return places of the dataset where a value of a like shape stands."""
        if self.kind == "EMAIL_ADDRESS":
            return self.carriers.mails
        return self.carriers.numbers if self.entry.number else []

    def _place(self, form: str) -> str:
        asked = len(self._answers()) >= LEAST_SPOTS
        if asked and self.draw.random() < max(self.register.bare, _OWN_TURN):
            return ANSWER
        likes = len(self._likes()) >= LEAST_SPOTS and form != PARTIAL
        if likes and self.draw.random() < _IN_PLACE:
            return REPLACED
        return MESSAGE if self.draw.random() < _OWN_TURN else INSERTED

    def _own_words(self, form: str) -> list[str]:
        """Return phrases that lead to the value."""
        if form == PARTIAL and "partial" in self.own:
            return list(self.own["partial"])
        if form == PARTIAL and self.entry.number:
            return list(self.words["partial"])
        own = list(self.own.get("phrases", ()))
        # A person is hardly ever introduced by the word name.
        general = list(self.words["general"])
        return own * 3 + general if len(own) > len(general) // 2 else own + general

    def _phrase(self, phrases: Sequence[str], spot: Spot) -> str:
        """Return words with a gap, in the register of the turn at a place."""
        phrase = self.draw.choice(phrases)
        if "{noun}" in phrase:
            phrase = phrase.replace("{noun}", self.draw.choice(self.own.get("nouns", ["number"])))
        phrase = misspell(self.draw, phrase, self.register.misspelt)
        text = self.carriers.rows[spot.row][spot.turn]["content"]
        if _unmarked(text, self.register, self.draw):
            return re.sub(r"[,;:!?]|'(?=\w)", "", phrase)
        return phrase[0].upper() + phrase[1:] if phrase[0] != "{" else phrase

    def _leading(self, form: str, spot: Spot) -> str:
        """Return words that lead to a value, with a gap for it."""
        if self.loose.drawn(self.draw):
            return self.loose.phrase(self.draw)
        return self._phrase(self._own_words(form), spot)

    def _answer(self, spot: Spot) -> str:
        if self.loose.drawn(self.draw):
            return self.loose.answer(self.draw)
        return self._phrase(self.words["answers"], spot)

    def _bare(self, value: Value) -> Canary:
        """Plant a value alone: after a question for it, or with its noun where nobody asked."""
        given = _Given(BARE, ANSWER, value)
        if self.replies_to and self.loose.drawn(self.draw):
            spot = self.draw.choice(self.replies_to)
            question = self.draw.choice(self.loose.questions())
            phrase = self.loose.answer(self.draw) if self.loose.drawn(self.draw) else "{}"
            return self._at(given, spot, phrase, question, self.loose.wait(self.draw))
        if len(self._answers()) >= LEAST_SPOTS:
            return self._at(given, self.draw.choice(self._answers()), "{}")
        if self.replies_to and self.register.multi_turn >= DIALOGUE:
            spot = self.draw.choice(self.replies_to)
            return self._at(given, spot, "{}", self._phrase(self.words["questions"], spot))
        spot = self.draw.choice(self.turns)
        phrase = self._phrase(["{noun} {}"], spot) if self.kind in NEEDS_WORDS else "{}"
        return self._at(_Given(BARE, MESSAGE, value), spot, phrase)

    def _follows_reply(self, spot: Spot) -> bool:
        row = self.carriers.rows[spot.row]
        return spot.turn > 0 and row[spot.turn - 1]["role"] == "assistant"

    def _at(
        self,
        given: _Given,
        spot: Spot,
        phrase: str,
        question: str = "",
        between: Sequence[str] = (),
    ) -> Canary:
        """Write a value in place of the text at a spot, after another question if given.

        Args:
            given: the value.
            spot: its place.
            phrase: words with a gap for it.
            question: turn of the assistant before it, in place of the dataset's.
            between: turns after the question, of the user and the assistant in turn.
        """
        row = self.carriers.rows[spot.row]
        text = row[spot.turn]["content"]
        before, after = phrase.split("{}")
        dressed = self._dress_value(given.value.text, text)
        before, after = self._dress(before, text), self._dress(after, text)
        start = spot.start + len(before)
        content = text[: spot.start] + before + dressed + after + text[spot.end :]
        messages = [*row]
        messages[spot.turn] = {"role": row[spot.turn]["role"], "content": content}
        if question:
            messages[spot.turn - 1] = {
                "role": "assistant",
                "content": self._dress(question, row[spot.turn - 1]["content"]),
            }
        messages[spot.turn : spot.turn] = [
            {"role": role, "content": self._dress(said, text)}
            for role, said in zip(("user", "assistant"), between, strict=False)
        ]
        at = spot.turn + len(between)
        return self._canary(given, messages, [(at, start, start + len(dressed))])

    def _inserted(self, given: _Given, spot: Spot) -> Canary:
        """Write words with a value between the sentences of a turn, or at one of its ends."""
        text = self.carriers.rows[spot.row][spot.turn]["content"]
        ends = [
            match.end()
            for match in _SENTENCE_END.finditer(text, spot.start, spot.end)
            if match.end() < spot.end
        ]
        at = self.draw.choice([spot.start, spot.end, spot.end, *ends])
        phrase = self._leading(given.form, spot)
        marked = phrase[0].isupper() and at != spot.end
        before = " " if at > 0 and not text[at - 1].isspace() else ""
        after = ("." if marked else "") + (" " if at < len(text) else "")
        return self._at(given, Spot(spot.row, spot.turn, at, at), before + phrase + after)

    def _split(self, given: _Given) -> Canary:
        """Give the parts of a value in successive turns, with short words between them."""
        asked = self._answers() if len(self._answers()) >= LEAST_SPOTS else []
        spot = self.draw.choice(asked or self.replies_to)
        row = self.carriers.rows[spot.row]
        reply = row[spot.turn - 1]["content"]
        messages = list(row[: spot.turn])
        if not asked:
            question = self._dress(self._phrase(self.words["questions"], spot), reply)
            messages[-1] = {"role": "assistant", "content": question}
        places = []
        for number, part in enumerate(given.value.parts):
            if number:
                said = self._dress(self.draw.choice(self.words["acknowledgements"]), reply)
                messages.append({"role": "assistant", "content": said})
            dressed = self._dress_value(part, row[spot.turn]["content"])
            places.append((len(messages), 0, len(dressed)))
            messages.append({"role": "user", "content": dressed})
        return self._canary(given, [*messages, *row[spot.turn + 1 :]], places)

    def _dress_value(self, text: str, around: str) -> str:
        return text if self.entry.cased else self._dress(text, around)

    def _dress(self, text: str, around: str) -> str:
        """Give a text the case and the punctuation of the text around it."""
        if _unmarked(around, self.register, self.draw) and self.kind in _ORNATE:
            text = re.sub(r",|(?<=[^\W\d])\.(?=\s|$)", "", text)
        letters = [char for char in around if char.isalpha()]
        if len(letters) < 2:
            return text.lower() if self.draw.random() < self.register.lower else text
        if not any(char.isupper() for char in letters):
            return text.lower()
        return text.upper() if all(char.isupper() for char in letters) else text

    def _canary(
        self, given: _Given, messages: Sequence[Message], places: Sequence[tuple[int, int, int]]
    ) -> Canary:
        """Make a canary of a row and the places (turn, start, end) of its value's parts."""
        first = max(0, places[0][0] - TURNS_BEFORE)
        system = [m for m in messages[:first] if m["role"] == "system"][:1]
        kept = [*system, *messages[first : places[-1][0] + TURNS_AFTER + 1]]
        moved = len(system) - first
        tokens = [
            Token(at + moved, number)
            for at, start, end in places
            for number in identifying(messages[at]["content"], start, end, given.value.public)
        ]
        probe = self.draw.choice(tokens)
        return Canary(self.kind, self.language, given.form, given.place, kept, probe)


# Kinds with commas and dots that people leave out in chat.
_ORNATE = frozenset({"PERSON", "STREET_ADDRESS", "BIRTH_DATE", "DATE", "LOCATION"})


def _unmarked(text: str, register: Register, draw: Random) -> bool:
    """Return True if a text has no punctuation; for a very short one the register decides."""
    if len(text) < 12:
        return draw.random() < register.unmarked
    return _MARKS.search(text) is None


def make_canaries(
    rows: Sequence[Sequence[Message]],
    entities: Sequence[str],
    languages: Sequence[str],
    per_kind: int,
    seed: str,
) -> list[Canary]:
    """Make canaries from the rows of a dataset; the same for a seed.

    Args:
        rows: turns of each row, at least one row with a user turn.
        entities: entity types to plant.
        languages: declared languages.
        per_kind: canaries of each kind, in each language in which it is written differently.
        seed: seed of everything that is drawn.
    """
    groups = planted_groups(entities, languages)
    spoken = [name for name in languages if name in lists("phrases")] or [ENGLISH]
    chance = Random(f"{seed}:rows")  # noqa: S311 - no secret
    register = measure_register(chance.sample(rows, min(MEASURED_ROWS, len(rows))))
    carriers = find_carriers(rows, spoken, chance)
    canaries = []
    for kind, language in groups:
        # Each has its own generator, so that adding one does not change the others.
        draw = Random(f"{seed}:{group_name(kind, language)}")  # noqa: S311 - no secret
        planter = _Planter(kind, language, register, carriers, draw)
        canaries += [planter.plant() for _ in range(per_kind)]
    return canaries
