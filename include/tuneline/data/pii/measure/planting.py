"""Plant made-up values into rows of a dataset, in its register.

Where the dataset asks for a value of the kind, the canary is the answer; where it holds numbers or
addresses, the canary takes the place of one; elsewhere a few words lead to it, in a turn of the
dataset or as a whole turn. The words take the case and punctuation of the turns around them. Only
shapes are counted to measure the register, so that nothing of the detector decides what a canary
looks like.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from random import Random
from typing import NamedTuple

from tuneline.data.conversations.answers import answer_object
from tuneline.data.near_duplicates.boilerplate import Affixes, common_affixes
from tuneline.data.pii.find.languages import likeliest
from tuneline.data.pii.measure.plants import (
    BARE,
    DIALOGUE,
    ENGLISH,
    KINDS,
    NEEDS_WORDS,
    PARTIAL,
    SPLIT,
    Register,
    Value,
    group_name,
    identifying,
    phrases,
    planted_groups,
)
from tuneline.data.tables.rows import Message

# Where a value stands: after a question of the dataset, in place of a number or address of the
# dataset, between the sentences of a turn, or as a whole turn.
ANSWER, REPLACED, INSERTED, MESSAGE = PLACES = ("answer", "replaced", "inserted", "message")
# The register is measured on at most this many rows, carriers are looked for in at most so many:
# enough variety, and the turns around the planted ones, which repeat, cost the detector little.
MEASURED_ROWS, CARRIER_ROWS = 3_000, 200
# Characters of a turn that are kept of its own; a model that reads a window of text sees no more.
LONGEST_TURN = 240
# Turns of a long conversation that go with the planted one.
TURNS_BEFORE, TURNS_AFTER = 2, 1
# Fewer places of a sort would make canaries that are hardly more than copies of each other.
LEAST_SPOTS = 3
# If as many user turns hold no sign at all, or no letter next to a digit, something stripped them.
STRIPPED_TURNS = 300
# Shares are drawn towards the usual ones as if this many values had shown them.
PRIOR = 10
# Share of inserted values that stand in a plain answer of the assistant; of values as a turn of
# their own, among those that are not bare; of numbers that take the place of one of the dataset.
_IN_REPLIES, _OWN_TURN, _IN_PLACE = 0.12, 0.25, 0.3
# Share of values that are given loosely in a dataset of nothing but dialogues without capitals and
# punctuation, and of those the ones that name their kind.
_LOOSE, _NAMED = 0.6, 0.8
# Kinds with commas and dots that people leave out in chat.
_ORNATE = frozenset({"PERSON", "STREET_ADDRESS", "BIRTH_DATE", "DATE", "LOCATION"})
# A question that lies far from the end of its turn, or a long turn, asks for nothing in particular.
_LONGEST_QUESTION = 240
# Words by which a turn asks for something, in the languages with phrases.
_ASKING = re.compile(
    r"(?i)\?|\b(?:what|whats|which|can|could|may|please|need|give|tell|enter|confirm|verify|"
    r"provide|bitte|wie|welche|quel|quelle|cuál|por favor)\b"
)
# A run of at least five digits in groups, without an amount's or a decimal's signs around it.
_NUMBER = re.compile(r"(?<![\w$€£.,/:-])\+?\(?\d(?:[ .()-]{0,2}\d){4,}(?![\w%]|[.,:/]\d)")
_DATE = re.compile(r"\d{4}([-. ])\d{1,2}\1\d{1,2}|\d{1,2}([-. ])\d{1,2}\2(?:\d{4}|\d{2})")
_SPOKEN = re.compile(
    r"(?i)\b(?:(?:zero|oh|one|two|three|four|five|six|seven|eight|nine|double)\b[ ,-]*){4,}|"
    r"(?<!\w)\d(?: \d){3,}(?!\w)"
)
_ENDS = re.compile(r"(?i)\blast (?:four|4|three|3)\b|\bend(?:s|ing)? (?:in|with|on)\b")
_MAIL = re.compile(r"(?<!\S)[^\s@]+@[^\s@]+\.\w+")
_GARBLED = re.compile(r"(?i)\w\s+@|@\s+\w|[(\[]at[)\]]|\bat\s+[\w-]+\s+dot\s+\w")
# The sign or the dot before the ending is lost.
_BROKEN = re.compile(
    r"(?i)(?<![@\w])\w*(?:gmail|yahoo|hotmail|outlook|aol|icloud)[ .]*com\b|"
    r"@(?:gmail|yahoo|hotmail|outlook|aol|icloud) ?com\b"
)
_WORD = re.compile(r"[^\W\d_]+")
_PIECE, _SHORT = re.compile(r"\W*\d{2,6}\W*"), re.compile(r"\W*\d{3,4}\W*")
_SIGNS, _MIXED = re.compile(r"\w[@./:,-]"), re.compile(r"[^\W\d]\d|\d[^\W\d]")
_BORDER = re.compile(r"(?<=[^\W\d])(?=\d)|(?<=\d)(?=[^\W\d])")
# Two of these with words between them are two values, not groups of one.
_RUN = re.compile(r"(?<!\w)\d{3,}(?![\w ])|(?<!\w)\d{3,}(?= [^\W\d]| ?$)")
_MARKS = re.compile(r"[,.;:!?]")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


class Token(NamedTuple):
    """A word or run of digits: its turn, and its number among the tokens of that turn."""

    turn: int
    number: int


class Canary(NamedTuple):
    """A row with a made-up value of a kind, in one of `FORMS` and `PLACES`."""

    kind: str
    language: str
    form: str
    place: str
    messages: list[Message]
    # What is looked for, drawn among what identifies: one for each canary, so that leaks are
    # independent and their number is binomial.
    probe: Token

    @property
    def group(self) -> str:
        """The group that is measured together."""
        return group_name(self.kind, self.language)


class Spot(NamedTuple):
    """A place for a value: characters start to end of a turn of a row; empty to insert there."""

    row: int
    turn: int
    start: int
    end: int


@dataclass
class Carriers:
    """The rows of a dataset and the places in them."""

    rows: list[list[Message]]
    # User turns after a question for a kind, by its group.
    answers: dict[str, list[Spot]] = field(default_factory=lambda: defaultdict(list))
    numbers: list[Spot] = field(default_factory=list)
    mails: list[Spot] = field(default_factory=list)
    # User turns by language, and turns of the assistant that are plain text.
    turns: dict[str, list[Spot]] = field(default_factory=lambda: defaultdict(list))
    replies: list[Spot] = field(default_factory=list)


def find_carriers(
    rows: Sequence[Sequence[Message]], languages: Sequence[str], draw: Random
) -> Carriers:
    """Find the places for values in rows, at least one; of a large dataset in some of them."""
    numbers = sorted(draw.sample(range(len(rows)), min(CARRIER_ROWS, len(rows))))
    affixes = common_affixes(m["content"] for n in numbers for m in rows[n] if m["role"] == "user")
    found = Carriers([[_cut(message, affixes) for message in rows[n]] for n in numbers])
    for number, row in enumerate(found.rows):
        for turn, message in enumerate(row):
            if message["role"] == "user":
                _note_user_turn(found, affixes, languages, number, turn)
            elif message["role"] == "assistant" and answer_object(message["content"]) is None:
                found.replies.append(Spot(number, turn, 0, len(message["content"])))
    return found


def _cut(message: Message, affixes: Affixes) -> Message:
    """Shorten a long turn, outside of what all user turns share; JSON stays whole."""
    text, role = message["content"], message["role"]
    start, end = affixes.cut(text) if role == "user" else (0, len(text))
    if end - start <= LONGEST_TURN or (role == "assistant" and answer_object(text) is not None):
        return message
    kept = text[start : start + LONGEST_TURN].rpartition(" ")[0] or text[start:][:LONGEST_TURN]
    return {"role": role, "content": text[:start] + kept + text[end:]}


def _note_user_turn(
    found: Carriers, affixes: Affixes, languages: Sequence[str], number: int, turn: int
) -> None:
    row = found.rows[number]
    text = row[turn]["content"]
    start, end = affixes.cut(text)
    spot = Spot(number, turn, start, end)
    found.turns[likeliest(text, languages)].append(spot)
    for spots, matches in ((found.numbers, _numbers_in(text)), (found.mails, _MAIL.finditer(text))):
        spots += [
            Spot(number, turn, match.start(), match.end())
            for match in matches
            if start <= match.start() and match.end() <= end
        ]
    if turn and row[turn - 1]["role"] == "assistant" and _asks(row[turn - 1]["content"]):
        for group in _asked_for(row[turn - 1]["content"], tuple(languages)):
            found.answers[group].append(spot)


def _asks(turn: str) -> bool:
    """Return True if a turn of the assistant asks for something, and for little else."""
    return len(turn) <= _LONGEST_QUESTION and _ASKING.search(turn) is not None


def asks_for_data(turn: str) -> bool:
    """Return True if a turn of the assistant asks for personal data, in any language known."""
    return _asks(turn) and bool(_asked_for(turn, tuple(phrases())))


def _asked_for(question: str, languages: tuple[str, ...]) -> list[str]:
    """Return the groups that a question names; `email address` does not ask for an address."""
    named = [
        (m.span(), group)
        for group, pattern in _nouns(languages).items()
        for m in pattern.finditer(question)
    ]
    return sorted(
        {
            group
            for (start, end), group in named
            if not any(s <= start and end <= e and (s, e) != (start, end) for (s, e), _ in named)
        }
    )


@cache
def _nouns(languages: tuple[str, ...]) -> dict[str, re.Pattern[str]]:
    """Return a pattern of the nouns of each group, the longest first."""
    found = {}
    for language in languages:
        for kind, entry in phrases()[language]["kinds"].items():
            nouns = map(re.escape, sorted(entry["nouns"], key=len, reverse=True))
            pattern = re.compile(rf"(?i)\b(?:{'|'.join(nouns)})\b")
            found[group_name(kind, language)] = pattern
    return found


def _numbers_in(text: str) -> list[re.Match[str]]:
    """Return the runs of five digits and more in a text, dates left out."""
    return [match for match in _NUMBER.finditer(text) if not _DATE.fullmatch(match[0].strip())]


def measure_register(rows: Sequence[Sequence[Message]]) -> Register:
    """Measure the register of rows, given the turns of each."""
    users = [m["content"] for row in rows for m in row if m["role"] == "user"]
    turns = [text for text in users if _WORD.search(text)]
    found = [text for text in users for _ in _numbers_in(text)]
    # The last digits alone, and what holds hardly more than a number, is a bare answer.
    short = sum(_SHORT.fullmatch(text) is not None for text in users)
    bare = sum(len(_WORD.findall(text)) <= 2 for text in found)
    spelled = sum(_SPOKEN.search(text) is not None for text in users)
    ends = sum(_ENDS.search(m["content"]) is not None for row in rows for m in row)
    given = [asked for row in rows for asked in _numbers_asked_for(row)]
    many = len(users) >= STRIPPED_TURNS
    several = [len(runs) > 1 for runs in map(_RUN.findall, users) if runs]
    return Register(
        lower=_share(sum(text == text.lower() for text in turns), len(turns)),
        unmarked=_share(sum(not _MARKS.search(text) for text in turns), len(turns)),
        stripped=many and not any(_SIGNS.search(text) for text in users),
        spaced=many and not any(_MIXED.search(text) for text in users),
        bare=_near(bare + short, len(found) + short, Register.bare),
        asked=_near(sum(given), len(given), Register.asked),
        several=_near(sum(several), len(several), Register.several),
        spelled=_near(spelled, len(found) + spelled, Register.spelled),
        partial=_near(ends + short, len(found) + ends + short, Register.partial),
        across=_share(sum(map(_given_in_pieces, rows)), len(rows)),
        garbled=_mails_like(_GARBLED, turns, Register.garbled),
        broken=_mails_like(_BROKEN, turns, Register.broken),
        multi_turn=_share(sum(len(_users_of(row)) > 1 for row in rows), len(rows)),
    )


def _users_of(row: Sequence[Message]) -> list[int]:
    return [turn for turn, message in enumerate(row) if message["role"] == "user"]


def _numbers_asked_for(row: Sequence[Message]) -> list[bool]:
    """Return for each turn of the user with a number whether a question for data was before it."""
    before = [{"role": "", "content": ""}, *row]
    return [
        before[turn]["role"] == "assistant" and asks_for_data(before[turn]["content"])
        for turn in _users_of(row)
        if _SHORT.fullmatch(row[turn]["content"]) or _numbers_in(row[turn]["content"])
    ]


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0


def _near(count: int, total: int, usual: float) -> float:
    """Return a share that few observations leave near the usual one."""
    return (count + PRIOR * usual) / (total + PRIOR)


def _given_in_pieces(row: Sequence[Message]) -> bool:
    """Return True if two bare runs of digits follow each other, without another question."""
    return any(
        _PIECE.fullmatch(row[one]["content"])
        and _PIECE.fullmatch(row[other]["content"])
        and not any(asks_for_data(message["content"]) for message in row[one + 1 : other])
        for one, other in pairwise(_users_of(row))
    )


def _mails_like(pattern: re.Pattern[str], turns: Sequence[str], usual: float) -> float:
    """Return the share of the e-mail addresses that have a form."""
    count = sum(any(one.search(text) for one in (_MAIL, _GARBLED, _BROKEN)) for text in turns)
    return _near(sum(pattern.search(text) is not None for text in turns), count, usual)


@dataclass
class _Planter:
    """Plants the canaries of one group."""

    kind: str
    language: str
    register: Register
    carriers: Carriers
    draw: Random

    def __post_init__(self) -> None:
        self.words = phrases()[self.language]
        self.own = self.words["kinds"].get(self.kind, {})
        self.entry = KINDS[self.kind]
        self.turns = self.carriers.turns[self.language] or [
            spot for spots in self.carriers.turns.values() for spot in spots
        ]
        self.after_reply = [
            spot
            for spot in self.turns
            if spot.turn and self.carriers.rows[spot.row][spot.turn - 1]["role"] == "assistant"
        ]
        answers = self.carriers.answers.get(group_name(self.kind, self.language), [])
        self.answers = answers if len(answers) >= LEAST_SPOTS else []
        likes = self.carriers.numbers if self.entry.number else []
        likes = self.carriers.mails if self.kind == "EMAIL_ADDRESS" else likes
        self.likes = likes if len(likes) >= LEAST_SPOTS else []
        self.loose = self.words.get("loose", {"nouns": {}})
        chat = self.register.unmarked * self.register.multi_turn
        self.loose_share = _LOOSE * chat if self.kind in self.loose["nouns"] else 0.0

    def plant(self) -> Canary:
        """Plant a value in one of the forms of its kind."""
        form, value = self.entry.draw(self.draw, self.register, self.language)
        if form == SPLIT:
            return self._split(value)
        if form == BARE or (form == PARTIAL and self._happens(self.register.bare)):
            return self._bare(form, value)
        if self.answers and self._happens(self.register.asked):
            spot = self.draw.choice(self.answers)
            return self._at((form, ANSWER, value), spot, self._answer(spot))
        if self.likes and form != PARTIAL and self._happens(_IN_PLACE):
            return self._at((form, REPLACED, value), self.draw.choice(self.likes), "{}")
        spot = self.draw.choice(self.turns)
        if self._happens(_OWN_TURN):
            return self._at((form, MESSAGE, value), spot, self._leading(form, spot))
        if self.carriers.replies and self._happens(_IN_REPLIES):
            spot = self.draw.choice(self.carriers.replies)
        return self._inserted(form, value, spot)

    def _happens(self, share: float) -> bool:
        return self.draw.random() < share

    def _phrase(self, choices: Sequence[str], spot: Spot) -> str:
        """Return words with a gap, in the register of the turn at a place."""
        phrase = self.draw.choice(choices)
        phrase = phrase.replace("{noun}", self.draw.choice(self.own.get("nouns", ["number"])))
        if self._unmarked(self.carriers.rows[spot.row][spot.turn]["content"]):
            return re.sub(r"[,;:!?]|'(?=\w)", "", phrase)
        return phrase[0].upper() + phrase[1:] if phrase[0] != "{" else phrase

    def _leading(self, form: str, spot: Spot) -> str:
        """Return words that lead to a value, with a gap for it."""
        if self._happens(self.loose_share):
            words = (self.loose[part] for part in ("leads", "links", "tails"))
            lead, link, tail = map(self.draw.choice, words)
            noun = self.draw.choice(self.loose["nouns"][self.kind])
            return f"{lead}{noun}{link}{{}}{tail}" if self._happens(_NAMED) else f"{lead}{{}}{tail}"
        own, general = list(self.own.get("phrases", ())), list(self.words["general"])
        if form == PARTIAL and "partial" in self.own:
            own, general = self.own["partial"], []
        elif form == PARTIAL and self.entry.number:
            own, general = self.words["partial"], []
        # A person is hardly ever introduced by the word name.
        return self._phrase(own * (3 if len(own) > len(general) // 2 else 1) + general, spot)

    def _answer(self, spot: Spot) -> str:
        if self._happens(self.loose_share):
            return str(self.draw.choice(self.loose["answers"]))
        return self._phrase(self.words["answers"], spot)

    def _bare(self, form: str, value: Value) -> Canary:
        """Plant a value alone: after a question for it, or with its noun where nobody asked."""
        if self.answers:
            return self._at((form, ANSWER, value), self.draw.choice(self.answers), "{}")
        if self.after_reply and self._happens(self.loose_share):
            spot = self.draw.choice(self.after_reply)
            phrase = self._answer(spot) if self._happens(self.loose_share) else "{}"
            question = self.draw.choice(self.loose["questions"][self.kind])
            return self._at((form, ANSWER, value), spot, phrase, question)
        if self.after_reply and self.register.multi_turn >= DIALOGUE:
            spot = self.draw.choice(self.after_reply)
            question = self._phrase(self.words["questions"], spot)
            return self._at((form, ANSWER, value), spot, "{}", question)
        spot = self.draw.choice(self.turns)
        phrase = self._phrase(["{noun} {}"], spot) if self.kind in NEEDS_WORDS else "{}"
        return self._at((form, MESSAGE, value), spot, phrase)

    def _at(
        self, given: tuple[str, str, Value], spot: Spot, phrase: str, question: str = ""
    ) -> Canary:
        """Write a phrase with a value in place of the text at a spot, after a question if given."""
        messages = [*self.carriers.rows[spot.row]]
        text = messages[spot.turn]["content"]
        if self.entry.number and self._happens(self.register.several):
            # Who is asked for two numbers gives both.
            other = str(self.draw.randint(1_000, 99_999))
            both = self.draw.choice(["{{}} and {}", "{} and {{}}", "{{}}, {}"]).format(other)
            phrase = phrase.replace("{}", both)
        before, after = (self._dress(words, text) for words in phrase.split("{}"))
        dressed = self._dress_value(given[2].text, text)
        start = spot.start + len(before)
        content = text[: spot.start] + before + dressed + after + text[spot.end :]
        messages[spot.turn] = {"role": messages[spot.turn]["role"], "content": content}
        if question:
            said = self._dress(question, messages[spot.turn - 1]["content"])
            messages[spot.turn - 1] = {"role": "assistant", "content": said}
        spans = [(spot.turn, start, start + len(dressed))]
        return self._canary(given, messages, spans)

    def _inserted(self, form: str, value: Value, spot: Spot) -> Canary:
        """Write words with a value between the sentences of a turn, or at one of its ends."""
        text = self.carriers.rows[spot.row][spot.turn]["content"]
        ends = [m.end() for m in _SENTENCE_END.finditer(text, spot.start, spot.end)]
        at = self.draw.choice([spot.start, spot.end, spot.end, *ends])
        phrase = self._leading(form, spot)
        marked = phrase[0].isupper() and at != spot.end
        before = " " if at > 0 and not text[at - 1].isspace() else ""
        after = ("." if marked else "") + (" " if at < len(text) else "")
        here = Spot(spot.row, spot.turn, at, at)
        return self._at((form, INSERTED, value), here, before + phrase + after)

    def _split(self, value: Value) -> Canary:
        """Give the parts of a value in successive turns, with short words between them."""
        spot = self.draw.choice(self.answers or self.after_reply)
        row = self.carriers.rows[spot.row]
        reply = row[spot.turn - 1]["content"]
        messages = list(row[: spot.turn])
        if not self.answers:
            question = self._dress(self._phrase(self.words["questions"], spot), reply)
            messages[-1] = {"role": "assistant", "content": question}
        spans = []
        for number, part in enumerate(value.parts):
            if number:
                said = self._dress(self.draw.choice(self.words["acknowledgements"]), reply)
                messages.append({"role": "assistant", "content": said})
            dressed = self._dress_value(part, row[spot.turn]["content"])
            spans.append((len(messages), 0, len(dressed)))
            messages.append({"role": "user", "content": dressed})
        messages += row[spot.turn + 1 :]
        return self._canary((SPLIT, ANSWER, value), messages, spans)

    def _dress_value(self, text: str, around: str) -> str:
        if self.entry.cased:
            return text
        if self.register.stripped:
            text = re.sub(r"[^\w\s]", self.draw.choice(["", " "]), text)
        return self._dress(_BORDER.sub(" ", text) if self.register.spaced else text, around)

    def _dress(self, text: str, around: str) -> str:
        """Give a text the case and the punctuation of the text around it."""
        if self.kind in _ORNATE and self._unmarked(around):
            text = re.sub(r",|(?<=[^\W\d])\.(?=\s|$)", "", text)
        letters = [char for char in around if char.isalpha()]
        if len(letters) < 2:
            return text.lower() if self._happens(self.register.lower) else text
        if not any(char.isupper() for char in letters):
            return text.lower()
        return text.upper() if all(char.isupper() for char in letters) else text

    def _unmarked(self, text: str) -> bool:
        """Return True if a text has no punctuation; for a very short one the register decides."""
        if len(text) < 12:
            return self._happens(self.register.unmarked)
        return _MARKS.search(text) is None

    def _canary(
        self,
        given: tuple[str, str, Value],
        messages: Sequence[Message],
        spans: Sequence[tuple[int, int, int]],
    ) -> Canary:
        """Make a canary of a row and the spans (turn, start, end) of its value's parts."""
        form, place, value = given
        first = max(0, spans[0][0] - TURNS_BEFORE)
        system = [m for m in messages[:first] if m["role"] == "system"][:1]
        kept = [*system, *messages[first : spans[-1][0] + TURNS_AFTER + 1]]
        tokens = [
            Token(turn + len(system) - first, number)
            for turn, start, end in spans
            for number in identifying(messages[turn]["content"], start, end, value.public)
        ]
        return Canary(self.kind, self.language, form, place, kept, self.draw.choice(tokens))


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
    spoken = [name for name in languages if name in phrases()] or [ENGLISH]
    chance = Random(f"{seed}:rows")  # noqa: S311 - no secret
    register = measure_register(chance.sample(rows, min(MEASURED_ROWS, len(rows))))
    carriers = find_carriers(rows, spoken, chance)
    canaries = []
    for kind, language in planted_groups(entities, languages):
        # Each has its own generator, so that adding one does not change the others.
        draw = Random(f"{seed}:{group_name(kind, language)}")  # noqa: S311 - no secret
        planter = _Planter(kind, language, register, carriers, draw)
        canaries += [planter.plant() for _ in range(per_kind)]
    return canaries
