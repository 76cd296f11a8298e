"""Questions that a seed makes of templates, as many as are wanted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random

from tuneline.harness.general_questions.drafts import Draft, choose, numbers_near, others

NAMES = "Anna Ben Clara David Emma Felix Grace Hugo Iris Jonas Kate Leo Maria Noah".split()
PLACES = ("market", "harbour", "library", "station", "school", "bakery", "museum", "park")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
THINGS = ("apples", "books", "candles", "eggs", "flowers", "hats", "lamps", "plates", "tickets")
_COUNTS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")
# Things of one kind, and the kind.
KINDS = {
    "animals": ("cow", "tiger", "rabbit", "goat", "mouse"),
    "fruits": ("apple", "pear", "cherry", "plum", "peach"),
    "colours": ("red", "green", "yellow", "purple", "brown"),
    "tools": ("hammer", "saw", "drill", "axe", "screwdriver"),
    "clothes": ("shirt", "sock", "coat", "dress", "scarf"),
    "vehicles": ("car", "bus", "train", "lorry", "tram"),
    "furniture": ("table", "chair", "bed", "shelf", "sofa"),
    "instruments": ("violin", "flute", "drum", "piano", "trumpet"),
}
_SUBJECTS = (("key", "keys"), ("book", "books"), ("child", "children"), ("picture", "pictures"))
_PLACED = (
    ("near the window", "near the windows"),
    ("behind the door", "behind the doors"),
    ("beside the tree", "beside the trees"),
    ("on the shelf", "on the shelves"),
)
_SAID = ("very old", "quite new", "too small", "almost ready", "rather quiet")


def arithmetic(draw: Random) -> Iterator[Draft]:
    """Yield sums, differences, products, quotients and comparisons of whole numbers."""
    while True:
        a, b = draw.randint(2, 60), draw.randint(2, 40)
        yield _number(draw, f"What is {a} + {b}?", a + b)
        a, b = sorted((draw.randint(2, 60), draw.randint(2, 60)), reverse=True)
        yield _number(draw, f"What is {a} - {b}?", a - b)
        a, b = draw.randint(2, 12), draw.randint(2, 12)
        yield _number(draw, f"What is {a} times {b}?", a * b)
        yield _number(draw, f"What is {a * b} divided by {b}?", a)
        a, b, c = draw.sample(range(1, 100), 3)
        highest, *less = sorted((a, b, c), reverse=True)
        yield choose(
            f"Which of the numbers {a}, {b} and {c} is the largest?",
            str(highest),
            [str(number) for number in less],
        )
        start, step = draw.randint(1, 20), draw.randint(2, 9)
        shown = [start + step * n for n in range(4)]
        yield _number(
            draw,
            f"Which number comes next: {', '.join(map(str, shown))}?",
            start + 4 * step,
        )


def _number(draw: Random, prompt: str, right: int) -> Draft:
    return choose(prompt, str(right), numbers_near(draw, right))


def agreement(draw: Random) -> Iterator[Draft]:
    """Yield pairs of sentences of which one has a verb that disagrees with its subject."""
    while True:
        subject, place = draw.choice(_SUBJECTS), draw.choice(_PLACED)
        many, said = draw.random() < 0.5, draw.choice(_SAID)
        # The noun between subject and verb has the other number more often than not.
        noun = place[not many if draw.random() < 0.7 else many]
        start = f"The {subject[many]} {noun}"
        verb, wrong = ("are", "is") if many else ("is", "are")
        yield choose(
            f"Continue this sentence in correct English: {start} ...",
            f"{start} {verb} {said}.",
            [f"{start} {wrong} {said}."],
        )


def reading(draw: Random) -> Iterator[Draft]:
    """Yield questions about a text in which two people do the same kind of thing."""
    while True:
        one, two = draw.sample(NAMES, 2)
        places, days, things = draw.sample(PLACES, 2), draw.sample(DAYS, 2), draw.sample(THINGS, 2)
        counts = draw.sample(_COUNTS, 2)
        text = (
            f"On {days[0]}, {one} went to the {places[0]} and bought {counts[0]} {things[0]}. "
            f"{two} was at the {places[1]} on {days[1]} and came home with {counts[1]} {things[1]}."
        )
        at = draw.randrange(2)
        who, rest = (one, two)[at], 1 - at
        asked = {
            f"Where was {who}?": (f"at the {places[at]}", f"at the {places[rest]}"),
            f"On which day was {who} out?": (f"on {days[at]}", f"on {days[rest]}"),
            f"What did {who} buy?": (things[at], things[rest]),
            f"How many things did {who} buy?": (counts[at], counts[rest]),
            f"Who bought {things[at]}?": (who, (one, two)[rest]),
        }
        question, (right, wrong) = draw.choice(list(asked.items()))
        yield choose(f"{text}\n\n{question}", right, [wrong])


def reasoning(draw: Random) -> Iterator[Draft]:
    """Yield orders of three people, things of one kind, conclusions and days of the week."""
    relations = (("taller", "tallest", "shortest"), ("older", "oldest", "youngest"))
    while True:
        high, middle, low = draw.sample(NAMES, 3)
        more, most, least = draw.choice(relations)
        facts = [f"{high} is {more} than {middle}.", f"{middle} is {more} than {low}."]
        draw.shuffle(facts)
        word, right = draw.choice(((most, high), (least, low)))
        wrong = [name for name in (high, middle, low) if name != right]
        yield choose(f"{' '.join(facts)} Who is the {word}?", right, wrong)
        kind, stranger = draw.sample(sorted(KINDS), 2)
        alike, odd = draw.sample(KINDS[kind], 3), draw.choice(KINDS[stranger])
        shown = [*alike, odd]
        draw.shuffle(shown)
        yield choose(f"Which word does not belong: {', '.join(shown)}?", odd, alike)
        thing = draw.choice(KINDS[kind])
        yield choose(f"A {thing} is one of which kind?", kind, others(draw, sorted(KINDS), kind))
        at, later = draw.randrange(7), draw.randint(2, 4)
        day = DAYS[(at + later) % 7]
        yield choose(
            f"Today is {DAYS[at]}. Which day is it in {later} days?", day, others(draw, DAYS, day)
        )
        holds = draw.random() < 0.5
        name, made_up = draw.choice(NAMES), draw.choice(("blick", "wug", "dax", "fep"))
        rule = f"{'All' if holds else 'No'} {made_up}s are {draw.choice(KINDS['colours'])}."
        colour = rule.removesuffix(".").rsplit(" ", 1)[1]
        answers = ("yes", "no") if holds else ("no", "yes")
        yield choose(f"{rule} {name} has a {made_up}. Is it {colour}?", answers[0], [answers[1]])


def formats(draw: Random) -> Iterator[Draft]:
    """Yield choices between well-formed and broken JSON and code, and values of expressions."""
    keys = ("name", "city", "colour", "item", "owner")
    while True:
        key, value = draw.choice(keys), draw.choice((*NAMES, *DAYS))
        right = json.dumps({key: value})
        yield choose(
            f"Write a JSON object with the key {key} and the value {value}.",
            right,
            [f"{{{key}: {value}}}", right.replace("}", "]"), right.replace(":", "=")],
        )
        items = draw.sample(THINGS, 3)
        listed = json.dumps(items)
        yield choose(
            f"Write a JSON list of these words: {', '.join(items)}.",
            listed,
            [listed.replace("]", ""), listed.replace('", "', '" "'), f"[{', '.join(items)}]"],
        )
        a, b = draw.randint(2, 9), draw.randint(2, 9)
        yield _number(draw, f"In Python, what is the value of {a} * {b} + 1?", a * b + 1)
        word = draw.choice(THINGS)
        yield _number(draw, f'In Python, what is the value of len("{word}")?', len(word))
        number = draw.randint(0, 2)
        yield choose(
            f"In Python, what is the value of {items}[{number}]?",
            f"'{items[number]}'",
            [f"'{item}'" for item in items if item != items[number]],
        )
        name = draw.choice(("total", "result", "value", "count"))
        yield choose(
            f"Write a Python statement that sets {name} to {a}.",
            f"{name} = {a}",
            [f"{name} == {a}", f"{a} = {name}", f"set {name} to {a};"],
        )
        yield choose(
            f"Write a Python loop that prints the numbers from 0 to {a - 1}.",
            f"for i in range({a}):\n    print(i)",
            [f"for i in range({a})\n    print(i)", f"for (i = 0, {a}) {{ print(i) }}"],
        )


def json_answers(draw: Random) -> Iterator[Draft]:
    """Yield requests for a JSON value, to be generated."""
    while True:
        name, day, thing = draw.choice(NAMES), draw.choice(DAYS), draw.choice(THINGS)
        count = draw.randint(1, 9)
        for asked, value in (
            (f'the key "name" and the value "{name}"', {"name": name}),
            (f'"day" set to "{day}" and "count" set to {count}', {"day": day, "count": count}),
            (f'"item" set to "{thing}"', {"item": thing}),
        ):
            prompt = f"Answer only with a JSON object that has {asked}."
            yield Draft(prompt, {"kind": "format", "rule": "json", "value": value}, 24)
