"""Make sentences with one piece of artificial personal data each; values are Faker's.

Each value is written plainly, in lower case, in capitals and with spacing tricks, in sentences with
and without a word that introduces it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from faker import Faker

FORMS = ("plain", "lower", "upper", "spaced")
LOCALES = ["en_US", "en_GB", "de_DE", "nl_NL", "fr_FR", "es_ES"]
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
# Spacing tricks: what is replaced, and by what in turn.
TRICKS = {
    "EMAIL_ADDRESS": ("@", (" @ ", " (at) ", "[at]")),
    "PHONE_NUMBER": ("-", (" . ", "  ", " - ")),
    "US_SSN": ("-", (" ", "", ".")),
    "IP_ADDRESS": (".", (" . ",)),
    "MAC_ADDRESS": (":", ("-",)),
}
# Kinds that may be written in groups, and the sizes of a group.
GROUPS = {"CREDIT_CARD": (4, 2, 1), "IBAN_CODE": (4, 2)}


@dataclass(frozen=True)
class Sentence:
    """A value of an entity type in a text, in one of the forms."""

    entity: str
    form: str
    value: str
    text: str


def make_sentences(entities: Sequence[str], seed: int, per_form: int) -> list[Sentence]:
    """Make sentences: `per_form` of each form for each entity; the same for a seed."""
    from faker import Faker

    fake = Faker(LOCALES)
    fake.seed_instance(seed)
    made = []
    for entity in entities:
        frames = SENTENCES[entity].split("|")
        for form in FORMS:
            for number in range(per_form):
                value, frame = _value(fake, entity), frames[number % len(frames)]
                if form == "spaced":
                    value = _spaced(entity, value, number)
                elif form != "plain":
                    value, frame = getattr(value, form)(), getattr(frame, form)()
                made.append(Sentence(entity, form, value, frame.replace("{}", value)))
    return made


def _value(fake: Faker, entity: str) -> str:
    phones = ("%##-%##-####", "(%##) %##-####", "+1 %##-%##-####", "+44 20 %###-####")
    make: dict[str, Callable[[], Any]] = {
        "PERSON": lambda: f"{fake.first_name()} {fake.last_name()}",
        "LOCATION": fake["en_US"].city,
        "EMAIL_ADDRESS": fake["en_US"].email,
        "PHONE_NUMBER": lambda: fake.numerify(fake.random_element(phones)),
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
    if entity not in TRICKS:
        return value
    old, tricks = TRICKS[entity]
    return value.replace(old, tricks[number % len(tricks)])
