"""Make customer messages with labelled personal data, and score a detector on them.

Values are Faker's; the sentences around them are from the sample, with order numbers and amounts.
Half of the messages hold no personal data.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.contest.contest import SEED
from benchmarks.workloads.input_rows import read_values, text_of
from benchmarks.workloads.support_chat import sentence
from tuneline.errors import UserError

if TYPE_CHECKING:
    from faker import Faker

# Sentences around a value of each entity type: those that both this project and Presidio find by
# their shape, and those that take a recogniser.
SENTENCES = {
    "EMAIL_ADDRESS": "You can write to {} about it.|My email is {}.|I registered with {} and can't "
    "log in!|{} is where the receipt should go",
    "PHONE_NUMBER": "Call me on {} after six.|My phone number is {}.|You can reach me at {}, "
    "thanks|Text me: {}",
    "CREDIT_CARD": "I paid with {} last Monday.|My card number is {}.|Why was {} declined?|charge "
    "it to {} please",
    "IBAN_CODE": "Send the refund to {} please.|My IBAN is {}.|The account {} is mine.|Is {} on "
    "file?",
    "US_SSN": "My SSN is {}.|They asked for my social security number, it is {}.|social security "
    "{} if you need it",
    "IP_ADDRESS": "I was logged in from {} then.|Your site blocks my address {}.|Someone at {} "
    "tried my password.",
    "MAC_ADDRESS": "The device {} can't connect.|My router is {}.",
    "PERSON": "My name is {} and I never got my parcel.|This is {}, I called yesterday.|Can you "
    "ask {} to ring me back?|The account belongs to {}, my neighbour.|Thanks a lot, {}|I am {} and "
    "I want my money back.|{} told me that the card was blocked.",
    "LOCATION": "I moved from {} last week.|Do you deliver to {}?|The parcel is stuck in {}.|I "
    "live in {} now.",
}
NAMED = ("PERSON", "LOCATION")
SHAPED = tuple(entity for entity in SENTENCES if entity not in NAMED)
LOCALES = ["en_US", "en_GB", "de_DE", "nl_NL", "fr_FR", "es_ES"]
PHONES = ("%##-%##-####", "(%##) %##-####", "+1 %##-%##-####", "+44 20 %###-####")
FORMS = ("plain", "lower", "upper", "spaced")
# Spacing tricks: what is replaced, and by what in turn; values in groups, and the sizes of a group.
TRICKS = {
    "EMAIL_ADDRESS": ("@", (" @ ", " (at) ", "[at]")),
    "PHONE_NUMBER": ("-", (" . ", "  ", " - ")),
    "US_SSN": ("-", (" ", "", ".")),
    "IP_ADDRESS": (".", (" . ",)),
    "MAC_ADDRESS": (":", ("-",)),
}
GROUPS = {"CREDIT_CARD": (4, 2, 1), "IBAN_CODE": (4, 2)}
MOST_SENTENCES = 4
# A value counts as found if this share of its characters is found, a hit is right if at least this
# share of its characters is personal data.
COVERED, RIGHT = 0.8, 0.5
# Names of entities in other sets of labelled texts.
ALIASES = {"GPE": "LOCATION", "LOC": "LOCATION", "CITY": "LOCATION"}


class Span(NamedTuple):
    """A span of a text, characters start to end, with a value of an entity type."""

    start: int
    end: int
    entity: str


Labelled = dict[str, Any]


def make_labelled(rows: int, seed: int = SEED) -> list[Labelled]:
    """Make messages with spans: `{"text": …, "spans": [[start, end, entity], …]}`.

    Half of them have one value each, in equal parts of each type and of the forms plain, lower
    case, capitals, and with spacing tricks.
    """
    rng = random.Random(seed)  # noqa: S311 - a workload, no secret
    valued = list(_sentences(seed, -(-rows // (2 * len(SENTENCES) * len(FORMS)))))
    rng.shuffle(valued)

    def fillers() -> str:
        return " ".join(sentence(rng) for _ in range(rng.randint(0, MOST_SENTENCES)))

    found: list[Labelled] = []
    for entity, form, value, text in valued[: rows // 2]:
        before, after = fillers(), fillers()
        if form in ("lower", "upper"):
            before, after = (getattr(part, form)() for part in (before, after))
        start = len(before) + bool(before) + text.index(value)
        whole = " ".join(filter(None, (before, text, after)))
        found.append({"text": whole, "spans": [[start, start + len(value), entity]]})
    while len(found) < rows:
        found.append({"text": f"{sentence(rng)} {fillers()}".strip(), "spans": []})
    rng.shuffle(found)
    return found


def _sentences(seed: int, per_form: int) -> Iterator[tuple[str, str, str, str]]:
    """Yield entity type, form, value and sentence."""
    from faker import Faker

    fake = Faker(LOCALES)
    fake.seed_instance(seed)
    for entity, text in SENTENCES.items():
        frames = text.split("|")
        for form in FORMS:
            for number in range(per_form):
                value, frame = _value(fake, entity), frames[number % len(frames)]
                if form == "spaced":
                    value = _spaced(entity, value, number)
                elif form != "plain":
                    value, frame = getattr(value, form)(), getattr(frame, form)()
                yield entity, form, value, frame.replace("{}", value)


def _value(fake: Faker, entity: str) -> str:
    make: dict[str, Callable[[], Any]] = {
        "PERSON": lambda: f"{fake.first_name()} {fake.last_name()}",
        "LOCATION": fake["en_US"].city,
        "EMAIL_ADDRESS": fake["en_US"].email,
        "PHONE_NUMBER": lambda: fake.numerify(fake.random_element(PHONES)),
        "US_SSN": fake["en_US"].ssn,
        "CREDIT_CARD": fake.credit_card_number,
        "IBAN_CODE": lambda: fake.random_element([fake[name] for name in LOCALES[1:]]).iban(),
        "IP_ADDRESS": lambda: fake.ipv4_public() if fake.pybool() else fake.ipv6(),
        "MAC_ADDRESS": fake.mac_address,
    }
    return str(make[entity]())


def _spaced(entity: str, value: str, number: int) -> str:
    if sizes := GROUPS.get(entity):
        size = sizes[number % len(sizes)]
        return " ".join(value[at : at + size] for at in range(0, len(value), size))
    old, tricks = TRICKS.get(entity, ("", ("",)))
    return value.replace(old, tricks[number % len(tricks)]) if old else value


def read_labelled(path: Path, most: int | None) -> tuple[list[Labelled], bool]:
    """Return the texts of a file, and True if it has spans, as presidio-research writes them.

    Raises:
        UserError: if the file can't be read, holds no text, or has a malformed span.
    """
    found: list[Labelled] = []
    labelled = False
    for number, value in enumerate(read_values(path), 1):
        if len(found) == most:
            break
        text = text_of(value)
        if text is None:
            continue
        labelled = labelled or "spans" in value
        spans = [_span(span, f"{path} row {number}") for span in value.get("spans") or []]
        found.append({"text": text, "spans": spans})
    if not found:
        raise UserError(f"{path} holds no text to work on; rows need `text` or messages")
    return found, labelled


def _span(span: Any, where: str) -> list[Any]:
    try:
        start = int(span["start"] if "start" in span else span["start_position"])
        end = int(span["end"] if "end" in span else span["end_position"])
        names = ("entity", "entity_type", "label")
        entity = str(next(span[name] for name in names if name in span))
    except (KeyError, TypeError, ValueError, StopIteration):
        raise UserError(
            f"{where}: a span needs start, end and entity, this one is {str(span)[:80]}"
        ) from None
    return [start, end, ALIASES.get(entity, entity)]


def detection_scores(
    rows: Sequence[Labelled], found: Sequence[Sequence[Span]], entities: Sequence[str]
) -> dict[str, float]:
    """Score a detector against the labels.

    Args:
        found: spans of each text that the detector found.

    Returns:
        `recall` over all values of these types (found if 80 % of the characters are, as any type),
        `recall_<entity>` for each that occurs, and `precision`: the share of hits of which half is
        personal data.
    """
    outcomes: dict[str, list[bool]] = defaultdict(list)
    right: list[bool] = []
    for row, hits in zip(rows, found, strict=True):
        spans = [Span(*span) for span in row["spans"]]
        for span in spans:
            if span.entity in entities:
                hit = _covered(span, hits) >= COVERED
                outcomes["recall"].append(hit)
                outcomes[f"recall_{span.entity}"].append(hit)
        right += [_covered(hit, spans) >= RIGHT for hit in hits if hit.entity in entities]
    if right:
        outcomes["precision"] = right
    first = ("recall", "precision")
    names = [*(n for n in first if n in outcomes), *sorted(outcomes.keys() - set(first))]
    return {name: sum(outcomes[name]) / len(outcomes[name]) for name in names}


def _covered(span: Span, others: Iterable[Span]) -> float:
    """Return the share of a span's characters that are in any of the others."""
    places: set[int] = set()
    for other in others:
        places.update(range(max(span.start, other.start), min(span.end, other.end)))
    return len(places) / max(1, span.end - span.start)
