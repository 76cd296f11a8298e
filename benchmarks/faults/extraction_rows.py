"""Make questions with JSON answers that copy from them, and score a scrubber on what it changes.

Each value is labelled: `personal` (names, addresses, mail, phone), `harmless` (makes, models,
products, years, amounts) or `number` (orders, accounts), which the design replaces on purpose, so
that it is counted apart. Names and things are lists of this file; nothing is the product's.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

SEED = 11

GIVEN = (
    "Agnieszka Bruno Carmela Dagmar Eitan Fenna Gideon Hiroko Imani Jelena Kwame Leopold Marisol "
    "Niamh Otis Pilar Quentin Rosalind Stellan Tamsin Ulrike Viggo Winona Xander Yasmin Zoran "
    "Amelia Brendan Chloe Derek Elena Frank Gloria Howard Irene Jasper Kevin Lorna Malcolm Nadia"
).split()
FAMILY = (
    "Abernathy Bergqvist Castellanos Dlamini Eriksen Ferreira Goldstein Hashimoto Iversen Jansson "
    "Kaczmarek Lindholm Moretti Nakagawa Olawale Pettersen Quiroga Rasmussen Sandoval Thackeray "
    "Underwood Vasquez Whitcombe Yildirim Zielinski Baxter Coleman Dawson Fletcher Gallagher"
).split()
STREETS = (
    "Willow Crescent|Harbour Street|Mill Lane|Station Road|Kastanienallee|Rue Pasteur|Via Garibaldi"
    "|Prospect Avenue|Church Hill|Gartenweg|Calle Luna|Orchard Drive"
).split("|")
TOWNS = "Norwich Albany Freiburg Nantes Verona Salamanca Tacoma Dundee Haarlem Savannah".split()
THINGS = {
    "car": "toyota corolla|ford fiesta|honda civic|dacia sandero|skoda octavia|renault clio|"
    "citroen c 3|hyundai i 30|mazda mx 5|audi a 4|mercedes c 180|nissan juke|volvo xc 60|fiat 500",
    "phone": "nokia 3310|samsung galaxy a 52|iphone 13 mini|pixel 7 pro|motorola g 84|oneplus nord",
    "appliance": "bosch serie 6|miele w 1|whirlpool supreme|siemens iq 500|dyson v 11|smeg dolce|"
    "philips lumea|braun silk|electrolux perfect care",
    "computer": "lenovo yoga 9|dell latitude 5420|asus rog strix|macbook air|hp envy|acer swift 3",
}
# Question, and the labels of its gaps; an answer holds all of them.
QUESTIONS = (
    "my {make} {model} from {year} does not start|i bought a {make} {model} in {year}, do you have "
    "the manual|{make} {model} {year} wanted|selling: {make}, model {model}, built {year}|Is the "
    "{make} {model} still on offer? It says {year} on the box.|the {model} by {make} broke after "
    "{count} weeks|need {count} spare parts for {make} {model}|{given} {family} here, my {make} "
    "{model} ({year}) is late, order {order}|Hello, I am {given} {family}. Order {order} for a "
    "{make} {model} should go to {street}, {town}.|this is {given}, send the {make} {model} to "
    "{street} in {town} please|order {order}, {count} x {make} {model}, mail {mail}|{mail} is my "
    "address, i returned the {make} {model} in {year}|call {given} {family} on {phone} about the "
    "{make} {model}|account {order}: {given} {family} wants {count} of the {model}|please change "
    "my name from {given} {other} to {given} {family}|I live at {street}, {town}, and my phone is "
    "{phone}|{family}, {given}: complaint about the {make} {model} of {year}"
).split("|")
LABELS = {
    **dict.fromkeys(("given", "family", "other", "street", "town", "mail", "phone"), "personal"),
    **dict.fromkeys(("make", "model", "year", "count"), "harmless"),
    "order": "number",
}
_GAP, _WORD = re.compile(r"\{(\w+)\}"), re.compile(r"\w+")
# A town alone is no personal data in the profile that is measured.
UNLABELLED = frozenset({"town"})

Row = dict[str, Any]


def make_extraction(rows: int, seed: int = SEED) -> list[Row]:
    """Make rows `{"messages": […], "values": {field: value}}`, four in ten in lower case."""
    draw = random.Random(seed)  # noqa: S311 - a workload, no secret
    return [_row(draw) for _ in range(rows)]


def _row(draw: random.Random) -> Row:
    make, model = draw.choice(THINGS[draw.choice(sorted(THINGS))].split("|")).split(" ", 1)
    given, family = draw.choice(GIVEN), draw.choice(FAMILY)
    letters = "".join(draw.choices("BCDFGHJKLMNPQRSTVWXZ", k=2))
    digits = str(draw.randint(10**3, 10**8))
    every = {
        "make": draw.choice([make, make.capitalize()]),
        "model": model,
        "year": str(draw.randint(1995, 2025)),
        "count": str(draw.randint(2, 60)),
        "given": given,
        "family": family,
        "other": draw.choice(FAMILY),
        "street": f"{draw.randint(1, 180)} {draw.choice(STREETS)}",
        "town": draw.choice(TOWNS),
        "mail": f"{given}{draw.choice(['.', '_', ''])}{family}@webpost.test".lower(),
        "phone": draw.choice(["0{} {} {}", "+44 {} {} {}", "({}) {}-{}"]).format(
            draw.randint(200, 989), draw.randint(200, 999), draw.randint(1000, 9999)
        ),
        "order": draw.choice([f"{letters}-{digits}", digits, f"{letters}{digits}"]),
    }
    question = draw.choice(QUESTIONS)
    values = {name: every[name] for name in _GAP.findall(question)}
    asked = question.format_map(values)
    if draw.random() < 0.4:
        asked, values = asked.lower(), {name: value.lower() for name, value in values.items()}
    turns = [("user", asked), ("assistant", json.dumps(values))]
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"messages": messages, "values": values}


def scrubbing_scores(
    rows: Sequence[Row], scrubbed: Sequence[Sequence[Any] | None]
) -> dict[str, float]:
    """Return shares: `leak` of personal words that are left, `harmless_changed`, `number_changed`.

    A value counts in the question and in the answer. `torn` is the share of rows whose answer has a
    value that is no longer in the question; `rejected` that of rows without a result (None).
    """
    counts: defaultdict[str, list[bool]] = defaultdict(list)
    for row, turns in zip(rows, scrubbed, strict=True):
        counts["rejected"].append(turns is None)
        if turns is None:
            continue
        question, answer = (turn["content"] for turn in turns)
        made = json.loads(answer)
        said = _words(question)
        counts["torn"].append(not all(_within(_words(str(v)), said) for v in made.values()))
        for name, kept in _kept(row["values"], made, said):
            label = LABELS[name]
            counts["leak" if label == "personal" else f"{label}_changed"].append(
                kept if label == "personal" else not kept
            )
    return {name: sum(flags) / len(flags) for name, flags in sorted(counts.items())}


def _kept(
    values: dict[str, str], made: dict[str, Any], said: list[str]
) -> Iterator[tuple[str, bool]]:
    """Yield for each word of each value whether it is left, in the question and in the answer."""
    for name, value in values.items():
        words = [] if name in UNLABELLED else _words(value)
        for word in words:
            if len(word) > 2 or LABELS[name] != "personal":
                yield name, word in said
                yield name, word in _words(str(made[name]))


def _words(text: str) -> list[str]:
    return list(map(str.casefold, _WORD.findall(text)))


def _within(words: list[str], said: list[str]) -> bool:
    return any(said[at : at + len(words)] == words for at in range(len(said)))
