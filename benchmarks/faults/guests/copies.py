"""Shapes whose answers copy from the question: fields of a message, spans of a document."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

from benchmarks.faults.guests.guest import Record, exchange
from benchmarks.faults.guests.words import (
    COMMON,
    COMPANIES,
    DAYS,
    FIRST,
    LAST,
    MONTHS,
    PRODUCTS,
    STREETS,
    TOWNS,
)

_SYSTEM = (
    "Extract from the message what is there, as JSON with any of the fields name, email, order, "
    "product, date."
)
# How people say a field; the value stands in it word for word.
_SAID = {
    "name": "this is {}|{} here|my name is {}|I am {}|it's {} again|{} writing|on behalf of {}",
    "email": "write to {}|my mail is {}|you can reach me at {}|{} is my address|mail: {}",
    "order": "order no {}|my order is {}|it's about {}|reference {}|number {} on the slip",
    "product": "i have a {}|the {} makes noises|my new {} came without papers|do you have parts "
    "for a {}|we bought the {} in your shop|can you value my {}|about the {}",
    "date": "it arrived on {}|bought {}|since {}|call me on {}|the slip says {}|dated {}",
}
_LINKS = (", | - |. |; | and |\n").split("|")
_ENDS = "|, please check|. Thanks|!|, can you help|. What now?| asap|. Awaiting your call".split(
    "|"
)


def _fields(choose: random.Random) -> dict[str, str]:
    first, last = choose.choice(FIRST), choose.choice(LAST)
    mail = choose.choice(
        (
            f"{first}.{last}@mailbox.example",
            f"{first}{last} at mailbox dot com",
            f"{last}@post.test",
        )
    ).lower()
    spaced = f"{choose.randint(1, 9)} {choose.choice('abcdefgh')}{choose.choice('klmnop')} "
    order = choose.choice(
        (
            f"{spaced}{choose.randint(10, 99)} {choose.choice('qrstuv')}",
            f"{choose.choice('ABCDE')}{choose.choice('KLMN')}-{choose.randint(10000, 99999)}",
            str(choose.randint(100000, 999999)),
        )
    )
    day, month = choose.randint(1, 28), choose.randrange(12)
    date = choose.choice(
        (
            f"{day} {MONTHS[month]}",
            f"{MONTHS[month]} {day}",
            f"{day:02}.{month + 1:02}.2025",
            f"2025-{month + 1:02}-{day:02}",
            choose.choice(DAYS),
        )
    )
    product = " ".join(choose.choice(PRODUCTS)) + choose.choice(
        ("", f" {choose.randint(2009, 2025)}")
    )
    name = choose.choice((first, f"{first} {last}", f"{last}, {first}", first.lower()))
    values = {"name": name, "email": mail, "order": order, "product": product, "date": date}
    if choose.random() < 0.4:  # many people write without capitals
        values |= {"name": name.lower(), "product": product.lower()}
    return values


def extraction(choose: random.Random) -> Record:
    """Make a message with two to five fields, and the JSON that copies them."""
    values = _fields(choose)
    present = choose.sample(list(values), choose.randint(2, 5))
    text = ""
    for field in present:
        text += choose.choice(_LINKS) if text else choose.choice(("", "", "hello, ", "Hi "))
        text += choose.choice(_SAID[field].split("|")).format(values[field])
    answer = {field: values[field] for field in values if field in present}
    text += choose.choice(_ENDS)
    return exchange(text, json.dumps(answer, ensure_ascii=False), _SYSTEM)


def _document(choose: random.Random, words: int) -> tuple[str, list[tuple[str, str]]]:
    """Write a report about a place of work; return it with questions and their spans."""
    first, last, town, company = map(choose.choice, (FIRST, LAST, TOWNS, COMPANIES))
    second, street = f"{choose.choice(FIRST)} {choose.choice(LAST)}", choose.choice(STREETS)
    brand, product = choose.choice(PRODUCTS)
    facts = {
        "founder": f"{first} {last}",
        "year": str(choose.randint(1893, 2019)),
        "street": f"{choose.randint(2, 140)} {street}",
        "machine": f"{brand} {product}",
        "people": f"{choose.randint(12, 980)} people",
        "cost": f"{choose.randint(12, 940)},{choose.randint(100, 999)} euros",
        "cause": f"a broken {choose.choice(COMMON)} sensor",
        "successor": second,
        "reopening": f"{choose.randint(1, 28)} {choose.choice(MONTHS)}",
    }
    told = [
        ("founder", f"{company} was founded by {facts['founder']} in {town}.", "Who founded it?"),
        ("year", f"The first hall was built in {facts['year']}.", "When was the hall built?"),
        ("street", f"Its gate is at {facts['street']}.", "At which address is the gate?"),
        ("machine", f"Most of the income comes from the {facts['machine']}.", "What earns most?"),
        ("people", f"In {choose.choice(MONTHS)} it employed {facts['people']}.", "How many work?"),
        ("cost", f"Repairs came to {facts['cost']}.", "How much did the repairs cost?"),
        ("cause", f"An inquiry named {facts['cause']} as the cause.", "What was the cause?"),
        ("successor", f"Since then {facts['successor']} has run the plant.", "Who runs it now?"),
        ("reopening", f"Work is to start again on {facts['reopening']}.", "When does work start?"),
    ]  # fmt: skip
    chosen = choose.sample(told, 5)
    sentences = [sentence for _, sentence, _ in chosen]
    length = sum(len(s.split()) for s in sentences)
    while length < words:
        remark = _remark(choose, town)
        sentences.insert(choose.randrange(len(sentences) + 1), remark)
        length += len(remark.split())
    asked = [(question, facts[fact]) for fact, _, question in chosen]
    return " ".join(sentences), asked


def _remark(choose: random.Random, town: str) -> str:
    a, b, c, d = choose.sample(COMMON, 4)
    return choose.choice(
        (
            f"The {a} of the {b} was discussed in {town} for many a {c}.",
            f"Some say that {a} and {b} matter more than the {c}, others point at the {d}.",
            f"No {a} was lost, although the {b} had to wait until {choose.choice(DAYS)}.",
            f"A {a} from the {b} office called it a {c} without {d}.",
            f"Beyond the {a} there is a {b}, and a {c} that nobody uses.",
            f"{choose.choice(FIRST)} from the {a} desk keeps a {b} of every {c}.",
            f"For {choose.randint(2, 30)} years the {a} has been next to the {b}, near the {c}.",
            f"It is the {a}, not the {b}, that decides about the {c} and the {d}.",
        )
    )


def documents(choose: random.Random) -> Iterator[Record]:
    """Make documents of 40 to 400 words, with five questions to each; answers are spans."""
    while True:
        text, asked = _document(choose, choose.randint(40, 390))
        for question, span in asked:
            yield exchange(f"{text}\n\n{question}", span, "Answer with words of the text.")


def long_prompt(choose: random.Random, words: int = 3500) -> Record:
    """Make a question to a file of some 4,000 tokens."""
    text, asked = _document(choose, words)
    question, span = choose.choice(asked)
    return exchange(f"{text}\n\n{question}", span, "Answer with words of the text.")
