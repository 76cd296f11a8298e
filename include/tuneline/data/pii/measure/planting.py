"""Plant made-up values into rows of a dataset, in its register.

The register is measured by shapes alone: nothing of the detector decides what a canary looks like.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from random import Random
from string import ascii_uppercase, digits
from typing import NamedTuple

from tuneline.data.conversations.answers import answer_object
from tuneline.data.conversations.languages import likeliest
from tuneline.data.near_duplicates.compared_text import Affixes, common_affixes
from tuneline.data.pii.measure import plants
from tuneline.data.tables.rows import Message

# Where a value stands: after a question of the dataset, in place of a number or address of the
# dataset, between the sentences of a turn, or as a whole turn.
ANSWER, REPLACED, INSERTED, MESSAGE = PLACES = ("answer", "replaced", "inserted", "message")
# Carriers are looked for in at most so many rows; turns that repeat cost the detector little.
CARRIER_ROWS = 200
# Characters that are kept of a turn; a longer one asks for nothing in particular.
LONGEST_TURN = 240
# Turns of a long conversation that go with the planted one.
TURNS_BEFORE, TURNS_AFTER = 2, 1
# Fewer places of a sort would make canaries that are hardly more than copies of each other.
LEAST_SPOTS = 3
# If as many user turns hold no sign at all, or no letter next to a digit, something stripped them.
STRIPPED_TURNS = 300
# Shares are drawn towards the usual ones as if this many values had shown them.
PRIOR = 10
# Share of values that answer a question where the dataset asks; that take the place of a number or
# address of the dataset; that are a turn of their own, among those with words around them; of
# inserted ones that stand in a plain answer of the assistant.
_ASKED, _IN_PLACE, _OWN_TURN, _IN_REPLIES = 0.4, 0.3, 0.25, 0.12
# Share of values that are given loosely in a dataset of nothing but dialogues without capitals and
# punctuation, and of those the ones that name their kind.
_LOOSE, _NAMED = 0.6, 0.8
# Words by which a turn asks for something, in the languages with phrases.
_ASKING = re.compile(
    r"(?i)\?|\b(?:what|whats|which|can|could|may|please|need|give|tell|enter|confirm|verify|"
    r"provide|bitte|wie|welche|quel|quelle|cuál|por favor)\b"
)
# A run of at least five digits in groups, without an amount's or a decimal's signs around it.
_NUMBER = re.compile(r"(?<![\w$€£.,/:-])\+?\(?\d(?:[ .()-]{0,2}\d){4,}(?![\w%]|[.,:/]\d)")
# The last digits alone, and words that say that these are the last ones.
_PIECE, _SHORT = re.compile(r"\W*\d{2,6}\W*"), re.compile(r"\W*\d{3,4}\W*")
_ENDS = re.compile(r"(?i)\blast (?:four|4|three|3)\b|\bend(?:s|ing)? (?:in|with|on)\b")
# A run of letters and digits with single signs, bounded, so that a long text takes linear time.
_CODE = re.compile(r"(?<![\w.@/-])[^\W_](?:[-/_]?[^\W_]){4,23}(?![\w@/-]|\.\w)")
_MAIL = re.compile(r"(?<!\S)[^\s@]+@[^\s@]+\.\w+")
# Spaced or spelled, or without the sign or the dot before the ending.
_GARBLED = re.compile(
    r"(?i)\w\s+@|@\s+\w|[(\[]at[)\]]|\bat\s+[\w-]+\s+dot\s+\w|@\w+ ?com\b|"
    r"(?<![@\w])\w*(?:gmail|yahoo|hotmail|outlook|aol|icloud)[ .]*com\b"
)
_WORD, _SIGN = re.compile(r"[^\W\d_]+"), re.compile(r"\w[@./:,-]")
_BORDER = re.compile(r"(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])")
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
        return plants.group_name(self.kind, self.language)


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
    codes: list[Spot] = field(default_factory=list)
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
            text = message["content"]
            if message["role"] == "user":
                spot = Spot(number, turn, *affixes.cut(text))
                found.turns[likeliest(text, languages)].append(spot)
                for pattern, spots in ((_NUMBER, found.numbers), (_MAIL, found.mails)):
                    matches = pattern.finditer(text, spot.start, spot.end)
                    spots += [Spot(number, turn, *match.span()) for match in matches]
                matches = filter(_is_code, _CODE.finditer(text, spot.start, spot.end))
                found.codes += [Spot(number, turn, *match.span()) for match in matches]
                if turn and row[turn - 1]["role"] == "assistant":
                    for group in _asked_for(row[turn - 1]["content"], tuple(languages)):
                        found.answers[group].append(spot)
            elif message["role"] == "assistant" and answer_object(text) is None:
                found.replies.append(Spot(number, turn, 0, len(text)))
    return found


def _is_code(match: re.Match[str]) -> bool:
    """Return True if a run has letters and at least four digits, as ID numbers have."""
    return sum(map(str.isdigit, match[0])) >= 4 and any(map(str.isalpha, match[0]))


def _cut(message: Message, affixes: Affixes) -> Message:
    """Shorten a long turn, outside of what all user turns share; JSON stays whole."""
    text, role = message["content"], message["role"]
    start, end = affixes.cut(text) if role == "user" else (0, len(text))
    if end - start <= LONGEST_TURN or (role == "assistant" and answer_object(text) is not None):
        return message
    kept = text[start : start + LONGEST_TURN].rpartition(" ")[0] or text[start:][:LONGEST_TURN]
    return {"role": role, "content": text[:start] + kept + text[end:]}


def asks_for_data(turn: str) -> bool:
    """Return True if a turn of the assistant asks for personal data, in any language known."""
    return bool(_asked_for(turn, tuple(plants.phrases())))


def _asked_for(question: str, languages: tuple[str, ...]) -> list[str]:
    """Return the groups that a turn of the assistant asks for, if it asks for little else."""
    if len(question) > LONGEST_TURN or not _ASKING.search(question):
        return []
    pattern, groups = _nouns(languages)
    return sorted(
        {group for noun in pattern.findall(question) for group in groups[noun.casefold()]}
    )


@cache
def _nouns(languages: tuple[str, ...]) -> tuple[re.Pattern[str], dict[str, list[str]]]:
    """Return a pattern of the nouns of all groups, and the groups of each."""
    groups: dict[str, list[str]] = defaultdict(list)
    for language in languages:
        for kind, entry in plants.phrases()[language]["kinds"].items():
            for noun in entry["nouns"]:
                groups[noun.casefold()].append(plants.group_name(kind, language))
    # The longest is first: `email address` does not ask for an address.
    nouns = map(re.escape, sorted(groups, key=len, reverse=True))
    return re.compile(rf"(?i)\b(?:{'|'.join(nouns)})\b"), groups


def measure_register(rows: Sequence[Sequence[Message]]) -> plants.Register:
    """Measure the register of rows, given the turns of each."""
    users = [m["content"] for row in rows for m in row if m["role"] == "user"]
    turns = [text for text in users if _WORD.search(text)]
    found = [text for text in users for _ in _NUMBER.finditer(text)]
    short = sum(_SHORT.fullmatch(text) is not None for text in users)
    # What holds hardly more than a number is a bare answer.
    bare = sum(len(_WORD.findall(text)) <= 2 for text in found)
    ends = sum(_ENDS.search(m["content"]) is not None for row in rows for m in row)
    garbled = sum(_GARBLED.search(text) is not None for text in turns)
    mails = sum(any(one.search(text) for one in (_MAIL, _GARBLED)) for text in turns)
    many = len(users) >= STRIPPED_TURNS
    return plants.Register(
        lower=sum(text == text.lower() for text in turns) / max(len(turns), 1),
        unmarked=sum(not _MARKS.search(text) for text in turns) / max(len(turns), 1),
        stripped=many and not any(map(_SIGN.search, users)),
        spaced=many and not any(map(_BORDER.search, users)),
        bare=_near(bare + short, len(found) + short, plants.Register.bare),
        partial=_near(ends + short, len(found) + ends + short, plants.Register.partial),
        across=sum(map(_given_in_pieces, rows)) / len(rows),
        multi_turn=sum(sum(m["role"] == "user" for m in row) > 1 for row in rows) / len(rows),
        garbled=_near(garbled, mails, plants.Register.garbled),
        codes=sum(any(map(_is_code, _CODE.finditer(text))) for text in users),
    )


def _given_in_pieces(row: Sequence[Message]) -> bool:
    """Return True if two bare runs of digits follow each other, without another question."""
    texts = [message["content"] for message in row]
    return any(
        _PIECE.fullmatch(one) and _PIECE.fullmatch(other) and not asks_for_data(between)
        for one, between, other in zip(texts, texts[1:], texts[2:], strict=False)
    )


def _near(count: int, total: int, usual: float) -> float:
    """Return a share that few observations leave near the usual one."""
    return (count + PRIOR * usual) / (total + PRIOR)


class _Planter:
    """Plants the canaries of one group."""

    def __init__(
        self, kind: str, language: str, register: plants.Register, carriers: Carriers, draw: Random
    ) -> None:
        self.kind, self.language, self.draw = kind, language, draw
        self.register, self.carriers, self.entry = register, carriers, plants.KINDS[kind]
        self.words = plants.phrases()[language]
        self.own = self.words["kinds"].get(kind, {})
        self.turns = carriers.turns[language] or list(chain(*carriers.turns.values()))
        self.after_reply = [
            spot
            for spot in self.turns
            if spot.turn and carriers.rows[spot.row][spot.turn - 1]["role"] == "assistant"
        ]
        answers = carriers.answers.get(plants.group_name(kind, language), [])
        likes = carriers.numbers if self.entry.number else []
        likes = carriers.mails if kind == "EMAIL_ADDRESS" else likes
        self.answers = answers if len(answers) >= LEAST_SPOTS else []
        self.likes = likes if len(likes) >= LEAST_SPOTS else []
        self.codes = carriers.codes if kind == "ID_NUMBER" else []
        many = len(self.codes) >= LEAST_SPOTS
        self.code_share = many * register.codes / (register.codes + PRIOR)
        self.loose = self.words.get("loose", {"nouns": {}})
        chat = register.unmarked * register.multi_turn
        self.loose_share = _LOOSE * chat if kind in self.loose["nouns"] else 0.0

    def plant(self) -> Canary:
        """Plant a value in one of the forms of its kind, or in one that the dataset has for it."""
        if self.code_share and self._happens(self.code_share):
            return self._another_code(self.draw.choice(self.codes))
        given = self.entry.draw(self.draw, self.register, self.language)
        form = given[0]
        if form in (plants.BARE, plants.SPLIT) or (
            form == plants.PARTIAL and self._happens(self.register.bare)
        ):
            return self._alone(given)
        if self.answers and self._happens(_ASKED):
            spot = self.draw.choice(self.answers)
            words = self.loose if self._happens(self.loose_share) else self.words
            return self._write(ANSWER, given, spot, self._phrase(words["answers"], spot))
        if self.likes and form != plants.PARTIAL and self._happens(_IN_PLACE):
            return self._write(REPLACED, given, self.draw.choice(self.likes))
        spot = self.draw.choice(self.turns)
        if self._happens(_OWN_TURN):
            return self._write(MESSAGE, given, spot, self._leading(form, spot))
        if self.carriers.replies and self._happens(_IN_REPLIES):
            spot = self.draw.choice(self.carriers.replies)
        # Between the sentences of the turn, or at one of its ends.
        text = self.carriers.rows[spot.row][spot.turn]["content"]
        ends = [m.end() for m in _SENTENCE_END.finditer(text, spot.start, spot.end)]
        at = self.draw.choice([spot.start, spot.end, spot.end, *ends])
        phrase = self._leading(form, spot)
        before = " " if at > 0 and not text[at - 1].isspace() else ""
        after = "." if phrase[0].isupper() and at != spot.end else ""
        phrase = f"{before}{phrase}{after}{' ' if at < len(text) else ''}"
        return self._write(INSERTED, given, Spot(spot.row, spot.turn, at, at), phrase)

    def _alone(self, given: tuple[str, plants.Value]) -> Canary:
        """Plant a value alone: after a question for it, or with its noun where nobody asked."""
        if self.answers:
            return self._write(ANSWER, given, self.draw.choice(self.answers))
        if self.after_reply and self.register.multi_turn >= plants.DIALOGUE:
            spot = self.draw.choice(self.after_reply)
            loose = self._happens(self.loose_share)
            questions = self.loose["questions"][self.kind] if loose else self.words["questions"]
            return self._write(ANSWER, given, spot, "{}", self._phrase(questions, spot))
        spot = self.draw.choice(self.turns)
        phrase = self._phrase(["{noun} {}"], spot) if self.entry.needs_words else "{}"
        return self._write(MESSAGE, given, spot, phrase)

    def _another_code(self, spot: Spot) -> Canary:
        """Write another code of the same form in place of one of the dataset."""
        text = self.carriers.rows[spot.row][spot.turn]["content"][spot.start : spot.end]
        letters = re.sub(r"[^\W\d_]", lambda _: self.draw.choice(ascii_uppercase), text)
        code = re.sub(r"\d", lambda _: self.draw.choice(digits), letters)
        code = code.lower() if text.islower() else code
        return self._write(REPLACED, (plants.DISCLOSED, plants.Value((code,))), spot)

    def _happens(self, share: float) -> bool:
        return self.draw.random() < share

    def _phrase(self, choices: Sequence[str], spot: Spot) -> str:
        """Return words with a gap, in the register of the turn at a place."""
        phrase = self.draw.choice(choices)
        phrase = phrase.replace("{noun}", self.draw.choice(self.own.get("nouns", ["number"])))
        if self._unmarked(self.carriers.rows[spot.row][spot.turn]["content"]):
            return re.sub(r"[,;:!?]|'(?=\w)", "", phrase)
        return phrase[0].upper() + phrase[1:]

    def _leading(self, form: str, spot: Spot) -> str:
        """Return words that lead to a value, with a gap for it."""
        if self._happens(self.loose_share):
            words = (self.loose[part] for part in ("leads", "links", "tails"))
            lead, link, tail = map(self.draw.choice, words)
            noun = self.draw.choice(self.loose["nouns"][self.kind])
            return f"{lead}{noun}{link}{{}}{tail}" if self._happens(_NAMED) else f"{lead}{{}}{tail}"
        if form == plants.PARTIAL and ("partial" in self.own or self.entry.number):
            return self._phrase(self.own.get("partial", self.words["partial"]), spot)
        own, general = self.own.get("phrases", []), self.words["general"]
        # A person is hardly ever introduced by the word name.
        return self._phrase(own * (3 if len(own) > len(general) // 2 else 1) + general, spot)

    def _write(
        self,
        place: str,
        given: tuple[str, plants.Value],
        spot: Spot,
        phrase: str = "{}",
        asked: str = "",
    ) -> Canary:
        """Write a phrase with a value in place of the text at a spot, after a question if given."""
        (form, value), row = given, self.carriers.rows[spot.row]
        role, text = row[spot.turn]["role"], row[spot.turn]["content"]
        reply = row[spot.turn - 1]["content"] if spot.turn else ""
        messages = list(row[: spot.turn])
        if asked:
            messages[-1] = {"role": "assistant", "content": self._dress(asked, reply)}
        before, after = (self._dress(words, text) for words in phrase.split("{}"))
        before, after = text[: spot.start] + before, after + text[spot.end :]
        tokens = []
        # The parts of a split value go to successive turns, with short words between them.
        for number, part in enumerate(value.parts if form == plants.SPLIT else [value.text]):
            if number:
                said = self._dress(self.draw.choice(self.words["acknowledgements"]), reply)
                messages.append({"role": "assistant", "content": said})
                before = after = ""
            dressed = part if self.entry.cased else self._dress(self._stripped(part), text)
            content = before + dressed + after
            found = plants.identifying(content, len(before), len(before + dressed), value.public)
            tokens += [Token(len(messages), token) for token in found]
            messages.append({"role": role, "content": content})
        messages += row[spot.turn + 1 :][:TURNS_AFTER]
        first = max(0, spot.turn - TURNS_BEFORE)
        system = [m for m in messages[:first] if m["role"] == "system"][:1]
        turn, token = self.draw.choice(tokens)
        probe = Token(turn + len(system) - first, token)
        messages = [*system, *messages[first:]]
        return Canary(self.kind, self.language, form, place, messages, probe)

    def _stripped(self, text: str) -> str:
        """Return a value without signs, or with spaces around its digits, if all turns are so."""
        if self.register.stripped:
            text = re.sub(r"[^\w\s]", self.draw.choice(["", " "]), text)
        return _BORDER.sub(" ", text) if self.register.spaced else text

    def _dress(self, text: str, around: str) -> str:
        """Give a text the case and the punctuation of the text around it."""
        if self.entry.ornate and self._unmarked(around):
            text = re.sub(r",|(?<=[^\W\d])\.(?=\s|$)", "", text)
        letters = "".join(filter(str.isalpha, around))
        if len(letters) < 2:
            return text.lower() if self._happens(self.register.lower) else text
        if letters.isupper():
            return text.upper()
        return text.lower() if letters == letters.lower() else text

    def _unmarked(self, text: str) -> bool:
        """Return True if a text has no punctuation; for a very short one the register decides."""
        if len(text) < 12:
            return self._happens(self.register.unmarked)
        return _MARKS.search(text) is None


def make_canaries(
    rows: Sequence[Sequence[Message]],
    entities: Sequence[str],
    languages: Sequence[str],
    numbers: Callable[[str], int],
    seed: str,
) -> list[Canary]:
    """Make a number of canaries for each entity, by kind and language, from users' turns."""
    spoken = [name for name in languages if name in plants.phrases()] or [plants.ENGLISH]
    register = measure_register(rows)
    carriers = find_carriers(rows, spoken, Random(f"{seed}:rows"))  # noqa: S311 - no secret
    canaries = []
    for kind, language in plants.planted_groups(entities, languages):
        # Each has its own generator, so that adding one does not change the others.
        draw = Random(f"{seed}:{plants.group_name(kind, language)}")  # noqa: S311 - no secret
        planter = _Planter(kind, language, register, carriers, draw)
        canaries += [planter.plant() for _ in range(numbers(plants.entity_of(kind)))]
    return canaries
