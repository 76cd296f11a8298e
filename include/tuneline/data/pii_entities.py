"""Tier 2: names and places, found by what introduces them and by spaCy's entity recogniser.

Models of this kind learn from edited text and miss names in chat without capital letters; there
the recogniser is asked about the same text in title case, and answers only count for words that
are known given names or otherwise unusual. What is still missed is measured, not assumed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from tuneline.data.pii_patterns import Hit
from tuneline.data.pii_surrogates import name_lists
from tuneline.errors import UserError

NER_ENTITIES = ("PERSON", "LOCATION")
_LABELS = {"PERSON": "PERSON", "GPE": "LOCATION", "LOC": "LOCATION"}
BATCH = 128

_NAME = r"[^\W\d_][^\W\d_'’.-]*(?:['’-][^\W\d_]+)*\.?"
_NAMES = rf"({_NAME}(?: {_NAME}){{0,3}})"
# What comes after these is a name, however it is written.
_SURE_CUE = re.compile(
    r"\b(?:my (?:full )?name(?: is|'s|’s|:)|the name(?: is|'s|’s|:)|i am called|i'm called|"
    r"name(?: is|:)|mr|mrs|ms|dr|miss|account holder(?: is|:)|cardholder(?: is|:)|"
    r"holder(?: is|:)|on behalf of|attn:?|customer:|client:)\.? " + _NAMES,
    re.IGNORECASE,
)
# After these it is one only when it looks like one.
_WEAK_CUE = re.compile(
    r"(?:\b(?:i am|i'm|i’m|this is|dear|hi|hello|signed|regards|sincerely|yours|thanks|cheers|best|"
    r"thank you|to|for|from|ask|call me|speak to|spoke to|spoke with|with|by),?\s+|\n)" + _NAMES,
    re.IGNORECASE,
)


_PLACE_CUE = re.compile(r"\b(?:in|from|to|near|of|at|around|outside|via|through) $", re.I)
_WORD = re.compile(r"(?<![\w@.-])[^\W\d_]{2,}(?![\w@]|[.-]\w)")
_FAMILY = re.compile(r" ([A-ZÀ-Þ]\.|[A-ZÀ-Þ][\w'’-]+)")


@lru_cache(maxsize=1)
def _also_words() -> frozenset[str]:
    return frozenset(name_lists()["also_words"])


@lru_cache(maxsize=1)
def _not_names() -> frozenset[str]:
    return frozenset(name_lists()["not_names"])


@lru_cache(maxsize=1)
def _given_names() -> frozenset[str]:
    return frozenset(name_lists()["given"])


def common_words(texts: Iterable[str]) -> frozenset[str]:
    """Words that stand in lower case in many texts, hence are no names.

    Only texts that use capital letters tell: elsewhere names are in lower case too.
    """
    counts: Counter[str] = Counter()
    total = 0
    for text in texts:
        total += 1
        if not text.islower():
            # Parts of addresses such as `anna.smith@…` are no words.
            counts.update({word for word in _WORD.findall(text) if word.islower()})
    least = max(2, total // 1000)
    return frozenset(word for word, count in counts.items() if count >= least)


class Recogniser:
    """Finds names, and places where they are asked for.

    Args:
        model: an installed spaCy package; None finds only what cues introduce.
        entities: which of `NER_ENTITIES` to find.
        allow: texts that are never names.
        common: words that are no names, from `common_words`.

    Raises:
        UserError: the spaCy package is not installed.
    """

    def __init__(
        self,
        model: str | None,
        entities: Sequence[str],
        allow: Sequence[str] = (),
        common: frozenset[str] = frozenset(),
    ) -> None:
        self._nlp = load_model(model) if model else None
        self._entities = frozenset(entities)
        self._allow = frozenset(text.casefold() for text in allow)
        self._common = common
        self._ordinary = [*_not_names(), *common]
        self._letters = {"".join(sorted(word)) for word in self._ordinary if len(word) > 3}

    def find(self, texts: Sequence[str]) -> list[list[Hit]]:
        """Names and places of each text; hits may overlap."""
        found: list[list[Hit]] = [[] for _ in texts]
        if "PERSON" in self._entities:
            for hits, text in zip(found, texts, strict=True):
                hits.extend(self._introduced(text))
                hits.extend(self._listed(text))
        if self._nlp is not None:
            # In lower case or all capitals a name looks like any word; title case helps.
            shown = [_titled(text) for text in texts]
            for hits, text, doc in zip(
                found, texts, self._nlp.pipe(shown, batch_size=BATCH), strict=True
            ):
                hits.extend(self._recognised(text, doc))
        return found

    def _introduced(self, text: str) -> Iterator[Hit]:
        capitals = not _lacks_case(text)
        for pattern, sure in ((_SURE_CUE, True), (_WEAK_CUE, False)):
            for match in pattern.finditer(text):
                hit = self._name_at(text, match.start(1), match.end(1), sure, capitals)
                if hit is not None:
                    yield hit

    def _listed(self, text: str) -> Iterator[Hit]:
        """Known given names, with the capitalised words that follow."""
        capitals = not _lacks_case(text)
        for match in _WORD.finditer(text):
            lowered = match[0].casefold()
            if lowered not in _given_names() or lowered in _also_words():
                continue
            if capitals and not match[0][0].isupper():
                continue
            end = match.end()
            if capitals:
                end = self._family_end(text, end)
            yield Hit(match.start(), end, "PERSON")

    def _family_end(self, text: str, end: int) -> int:
        """Where a name ends: up to two more capitalised words that are not ordinary ones."""
        for _ in range(2):
            following = _FAMILY.match(text, end)
            if following is None:
                break
            lowered = following[1].rstrip(".").casefold()
            if lowered in _not_names() or lowered in self._common:
                break
            end = following.end(1)
        return end

    def _name_at(self, text: str, start: int, end: int, sure: bool, capitals: bool) -> Hit | None:
        """The name that a run of words begins with, if it does."""
        stop = start
        for word in re.finditer(r"\S+", text[start:end]):
            bare = word[0].strip(".,'’")
            lowered = bare.casefold()
            known = lowered in _given_names()
            ordinary = lowered in _not_names() or (lowered in self._common and not known)
            if not bare or ordinary or lowered in self._allow:
                break
            if capitals and not bare[0].isupper():
                break
            if not sure and not (known or stop > start):
                break
            stop = start + word.start() + len(word[0].rstrip(".,'’"))
            if word[0][-1] in ",;:!?" or (word[0][-1] == "." and len(bare) > 2):
                break
        return Hit(start, stop, "PERSON") if stop > start else None

    def _recognised(self, text: str, doc: Any) -> Iterator[Hit]:
        retitled = doc.text != text
        for entity in doc.ents:
            start, end = _trim(text, entity.start_char, entity.end_char)
            words = [word.casefold() for word in re.findall(r"[^\W\d_]+", text[start:end])]
            label = _LABELS.get(entity.label_)
            if label is None and words and words[0] in _given_names():
                # Names that the model does not know it often takes for firms.
                label = "PERSON"
            if label not in self._entities:
                continue
            if not words or any(char.isdigit() for char in text[start:end]):
                continue
            placed = label == "LOCATION" and bool(_PLACE_CUE.search(text, 0, start))
            if text[start:end].casefold() in self._allow:
                continue
            if not self._unusual(words, retitled and not placed):
                continue
            yield Hit(start, end, label)

    def _unusual(self, words: Sequence[str], retitled: bool) -> bool:
        """Whether words can be a name: none is ordinary, and in retitled text one is known."""
        given = _given_names()
        if any(w in _not_names() for w in words):
            return False
        if any(w in self._common and w not in given for w in words):
            return False
        if len(words) > 1 or words[0] in given:
            return True
        return not retitled and not self._is_slip(words[0])

    def _is_slip(self, word: str) -> bool:
        """Whether a word is an ordinary one with a slip of the keyboard ("Pelase", "Mondday")."""
        return "".join(sorted(word)) in self._letters or bool(
            get_close_matches(word, self._ordinary, n=1, cutoff=0.85)
        )


def load_model(package: str) -> Any:
    """Load an installed spaCy package, the entity recogniser alone.

    Raises:
        UserError: it is not installed or is no spaCy model.
    """
    import spacy

    try:
        return spacy.load(
            package,
            exclude=["tagger", "parser", "attribute_ruler", "lemmatizer", "senter"],
        )
    except (OSError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"data.spacy_model {package!r} can't be loaded ({reason}); install that package, or "
            "set data.pii_ner to false"
        ) from None


def _lacks_case(text: str) -> bool:
    """Whether a text uses no capital letters, or nothing else."""
    letters = [char for char in text if char.isalpha()]
    capitals = sum(char.isupper() for char in letters)
    return capitals <= 1 or capitals >= 0.8 * len(letters)


def _titled(text: str) -> str:
    if not _lacks_case(text):
        return text
    title = re.sub(r"[^\W\d_]+", lambda m: m[0][0].upper() + m[0][1:].lower(), text)
    return title if len(title) == len(text) else text


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Leave out what is not of the name: possessive, punctuation, space."""
    piece = text[start:end]
    piece = re.sub(r"(?:['’]s)?[\W_]*$", "", piece)
    lead = len(piece) - len(piece.lstrip(" .,;:!?'\"()[]{}-\n"))
    return start + lead, start + len(piece)
