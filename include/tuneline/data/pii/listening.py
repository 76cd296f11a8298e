"""Find personal data by the place of each text in its conversation."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from tuneline.data.pii.answered_names import bare_name
from tuneline.data.pii.answers import answers
from tuneline.data.pii.births import BIRTH_WORDS, lone_date, whole_dates
from tuneline.data.pii.candidates import key_of
from tuneline.data.pii.dialogue import wanted
from tuneline.data.pii.digit_rule import uncounted_by
from tuneline.data.pii.expiry import CARD_WORDS, asks_for_expiry, expiries
from tuneline.data.pii.fields import fields, named_places
from tuneline.data.pii.hits import Hit
from tuneline.data.pii.homes import codes, confirmed, houses, units
from tuneline.data.pii.languages import ENGLISH
from tuneline.data.pii.log_ins import about_log_ins, typed_secrets
from tuneline.data.pii.mailboxes import told_mailboxes
from tuneline.data.pii.name_words import NameWords
from tuneline.data.pii.numbers import identifiers
from tuneline.data.pii.open_answers import (
    asks_for_quantity,
    follows_open_question,
    named_stretches,
    open_answers,
    stated_numbers,
)
from tuneline.data.pii.parts import LONGEST
from tuneline.data.pii.settings import Settings
from tuneline.data.pii.shared_parts import Shared
from tuneline.data.pii.spelled import spelled
from tuneline.data.pii.spoken import has_digit_words
from tuneline.data.pii.turns import Segment, own_part
from tuneline.data.tables.rows import Message

# Texts repeat in chat data; the hits of this many are remembered.
REMEMBERED = 10_000
# What shows that a conversation is about somebody's identifiers.
_TELLING = frozenset(
    "ID_NUMBER PHONE_NUMBER CREDIT_CARD US_SSN IBAN_CODE PASSWORD BIRTH_DATE EMAIL_ADDRESS".split()
)

# Types whose words are no number of their own.
_SURER = frozenset({"BIRTH_DATE", "STREET_ADDRESS", "EMAIL_ADDRESS", "CREDIT_CARD"})

Allowed = Callable[[str, Iterable[Hit]], list[Hit]]
_DIGIT = re.compile(r"\d")
# Words of a conversation about where somebody lives.
_HOME = (
    *(
        "address",
        "moved to",
        "moved from",
        "moving to",
        "moved in",
        "deliver",
        "ship to",
        "shipped to",
    ),
    *("live at", "live on", "lives at", "lives on", "living at", "my house", "my home", "my flat"),
)
Said = dict[str, tuple[Hit, ...]]


class Place(NamedTuple):
    """The place of a text in its conversation.

    Attributes:
        wanted: topics that it is expected to answer.
        user: True if it is not the assistant's.
        open: True if it follows a question that may ask for an identifier.
        log_in: True if it is the user's and the turns around it speak of logging in.
        numbered: True if it is the user's and has digits or words for them.
    """

    wanted: frozenset[str]
    user: bool
    open: bool
    log_in: bool
    numbered: bool


class _About(NamedTuple):
    """Subjects of a conversation that decide on the dates and streets in it.

    Attributes:
        births: True if it has a word for birth.
        homes: True if it asks for an address, or somebody says where he lives.
        cards: True if it has a word for a card.
    """

    births: bool
    homes: bool
    cards: bool


class Listener:
    """A finder of what the places of a row's texts show.

    Args:
        settings: strength of the digit rule, and whether names count.
        words: names and ordinary words.
        allowed: filter of the hits that the settings allow to stay.
    """

    def __init__(self, settings: Settings, words: NameWords, allowed: Allowed) -> None:
        self._rule = settings.digits
        self._uncounted = uncounted_by(settings.digits)
        self._names = "PERSON" in settings.names
        self._english = ENGLISH in settings.languages
        self._words = words
        self._allowed = allowed
        self._hits = lru_cache(maxsize=REMEMBERED)(self._found)

    def said(
        self,
        turns: Sequence[Message],
        own: Sequence[Segment],
        shared: Shared,
        find: Callable[[str], Sequence[Hit]],
    ) -> Said:
        """Return the hits of a row by text.

        Args:
            turns: its turns.
            own: its texts.
            shared: parts that rows share, which hold nobody's answers.
            find: finder of what has a shape, which shows what a conversation is about.
        """
        if self._rule is None:
            return {}
        said: Said = {}
        # A turn asks and answers at its end.
        messages = [{**turn, "content": turn["content"][-LONGEST:]} for turn in turns]
        expected, logging_in = wanted(messages), about_log_ins(messages)
        about: _About | None = None
        heard: list[str] = []
        open_to: list[tuple[str, int, int]] = []
        for piece in own:
            role = messages[piece.turn]["role"]
            user = role == "user"
            whole = turns[piece.turn]["content"].startswith(piece.text, piece.start)
            if role == "system" or not whole or len(piece.text) > LONGEST:
                continue
            start, end = own_part(piece, turns[piece.turn], shared.affixes)
            heard.append(piece.text)
            digit = _DIGIT.search(piece.text) is not None
            told = digit or has_digit_words(piece.text.lower())
            numbered = user and told
            if numbered and not asks_for_quantity(messages, piece.turn):
                open_to.append((piece.text, start, end))
            place = Place(
                expected[piece.turn],
                user,
                numbered and follows_open_question(messages, piece.turn),
                user and logging_in[piece.turn],
                numbered,
            )
            _add(said, piece.text, start, self._hits(piece.text[start:end], place))
            if told or ("," in piece.text and not piece.text.islower()):
                about = about or _about(messages, expected)
                before = messages[piece.turn - 1]["content"] if piece.turn else ""
                _add(said, piece.text, start, self._told(piece.text[start:end], about, before))
        if len(heard) < 2 or not open_to:
            return said
        if any(hit.entity in _TELLING for t in heard for hit in (*said.get(t, ()), *find(t))):
            for text, start, end in open_to:
                self._add_open(said, text, start, end, find)
        return said

    def _told(self, text: str, about: _About, before: str) -> list[Hit]:
        """Return the dates and streets of a text that its conversation is about.

        Args:
            text: a turn with a digit.
            about: what its conversation is about.
            before: the turn before.
        """
        hits: list[Hit] = []
        if about.births:
            hits += [Hit(*span, "BIRTH_DATE") for span in whole_dates(text)]
        if about.homes:
            places = (
                *houses(text, self._words),
                *units(text),
                *confirmed(text),
                *codes(text),
            )
            hits += [Hit(*span, "STREET_ADDRESS") for span in places]
        if about.cards:
            until = expiries(text, asked=asks_for_expiry(before))
            hits += [Hit(*span, "CREDIT_CARD") for span in until]
        return self._allowed(text, hits)

    def _add_open(
        self,
        said: Said,
        text: str,
        start: int,
        end: int,
        find: Callable[[str], Sequence[Hit]],
    ) -> None:
        """Add the numbers that nothing explains in a text of a telling conversation."""
        own = text[start:end]
        hits = apart(self._rare(own, open_answers(own, self._uncounted, known=True)), find(own))
        if start == 0:
            hits = apart(hits, said.get(text, ()))
        _add(said, text, start, self._allowed(own, hits))

    def _rare(self, text: str, found: Iterable[tuple[int, int, str]]) -> list[Hit]:
        """Return the hits of rules without a word for them, but for numbers of many rows."""
        frequent = self._rule.frequent if self._rule else frozenset()
        return [Hit(*hit) for hit in found if key_of(text[hit[0] : hit[1]]) not in frequent]

    def _found(self, text: str, place: Place) -> tuple[Hit, ...]:
        if self._rule is None:
            return ()
        hits = [Hit(*found) for found in identifiers(text, place.wanted, self._rule)]
        hits += answers(text, place.wanted, self._words, user=place.user)
        hits += [Hit(*found) for found in spelled(text)]
        if place.user:
            hits += (Hit(*span, "BIRTH_DATE") for span in lone_date(text))
            hits += fields(text, self._words)
            if place.numbered or "corner" in text:
                hits += named_places(text, self._words)
            hits += [Hit(*s, "EMAIL_ADDRESS") for s in told_mailboxes(text, asked=False)]
        if place.numbered:
            hits += [Hit(*found) for found in named_stretches(text)]
            loose = self._rare(text, stated_numbers(text, self._uncounted))
            if place.open:
                loose += self._rare(text, open_answers(text, self._uncounted, known=False))
            hits += apart(loose, hits)
        if place.log_in:
            secrets = (Hit(*span, "PASSWORD") for span in typed_secrets(text))
            hits += apart(secrets, hits)
        if place.user and self._names and self._english:
            hits += bare_name(text, self._words)
        elif not self._names:
            hits = [hit for hit in hits if hit.entity != "PERSON"]
        return tuple(self._allowed(text, hits))


def _about(messages: Sequence[Message], expected: Sequence[frozenset[str]]) -> _About:
    """Return what a conversation is about.

    Args:
        messages: its turns.
        expected: topics that each of them is expected to answer.
    """
    texts = [message["content"].lower() for message in messages]
    told = [t for t, m in zip(texts, messages, strict=True) if m["role"] != "system"]
    asked = any("address" in topics for topics in expected)
    return _About(
        births=_has_one(texts, BIRTH_WORDS),
        homes=asked or _has_one(told, _HOME),
        cards=_has_one(texts, CARD_WORDS),
    )


def _has_one(texts: Sequence[str], words: Sequence[str]) -> bool:
    return any(word in text for text in texts for word in words)


def apart(hits: Iterable[Hit], others: Sequence[Hit]) -> list[Hit]:
    """Return the hits that are no part of some surer ones, and overlap none of another kind."""
    return [
        hit
        for hit in hits
        if not any(
            (other.start <= hit.start and hit.end <= other.end)
            or (other.start < hit.end and hit.start < other.end and other.entity in _SURER)
            for other in others
        )
    ]


def _add(said: Said, text: str, start: int, hits: Iterable[Hit]) -> None:
    """Add the hits of a part of a text that begins at `start`."""
    moved = tuple(Hit(h.start + start, h.end + start, h.entity) for h in hits)
    if moved:
        said[text] = tuple(dict.fromkeys((*said.get(text, ()), *moved)))
