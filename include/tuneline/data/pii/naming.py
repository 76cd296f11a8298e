"""Find the word that names a number: the nearest topic before or after it, and what is between."""

from __future__ import annotations

import re

from tuneline.data.pii.candidates import Candidate
from tuneline.data.pii.topics import NUMBER_TOPICS, Topic, topics

# Characters before and after a number in which a word can name its type.
BEFORE, AFTER = 60, 24
# Words between the name of a number and the number itself.
_LINK = re.compile(
    r"(?:\W|\b(?:number|num|no|nr|id|code|is|was|are|be|it|its|"
    r"s|should|must|as|ends?|ending|in|with|"
    r"last|four|4|digits?|of|the|to|from|set up|set|my|your|his|her|our|and|i|we|put|enter(?:ed)?|"
    r"that|this|has|have|got|says?|asks?|shows?|changed?|use[ds]?|using|try|tried|new|old|also|a|"
    r"uh|um|here|called|named|under|on|for|file|starts?|says|typed?|gave|give|am|at|which|"
    r"x+|real|full|same|still|now|just|currently|please|pls|back|me|him|us|you)\b)*+",
    re.IGNORECASE,
)
# A few words between a name and its number, if what says "is" stands before the number ("the pin
# for the back door is 6610").
_LOOSE_LINK = re.compile(
    r"(?:[^\w.!?;]+[a-z][a-z']{0,11}+){0,6}[^\w.!?;]+(?:is|was|it's|its|says|reads|shows|=|:)[\W]{1,3}",
    re.IGNORECASE,
)
_LOOSE_TOPICS = frozenset({"secret", "ssn", "account", "phone", "card"})
SENTENCE_END = re.compile(r"[.!?]\s[^.!?]*$")


def nearest(text: str, candidate: Candidate) -> tuple[str | None, bool]:
    """Return the topic that names a candidate, and whether nothing but links is between."""
    found: Topic | None = None
    after: Topic | None = None
    for topic in topics(text):
        if topic.start >= candidate.end:
            after = after or topic
        elif topic.end <= candidate.start and topic.name in (*NUMBER_TOPICS, "email", "address"):
            found = topic
    if found is not None and candidate.start - found.end <= BEFORE:
        adjacent = _is_linked(text, found, candidate.start)
        if found.name in NUMBER_TOPICS:
            return found.name, adjacent
        if adjacent:
            return None, False
    if after is not None and after.name in NUMBER_TOPICS and after.start - candidate.end <= AFTER:
        apart = SENTENCE_END.search(text[candidate.end : after.start]) is not None
        between = None if apart else _LINK.fullmatch(text, candidate.end, after.start)
        return (after.name, True) if between and after.name != "business" else (None, False)
    return None, False


def _is_linked(text: str, topic: Topic, start: int) -> bool:
    """Return True if nothing but links stands between a topic and a number after it."""
    if _LINK.fullmatch(text, topic.end, start):
        return True
    return topic.name in _LOOSE_TOPICS and bool(_LOOSE_LINK.fullmatch(text, topic.end, start))
