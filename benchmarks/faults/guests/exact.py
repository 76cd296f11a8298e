"""Shapes whose questions differ in a sign, a number or a name: arithmetic and code."""

from __future__ import annotations

import random

from benchmarks.faults.guests.guest import Record, exchange

_SUMS = (
    "What is {a} {sign} {b}?|Calculate {a} {sign} {b}.|{a} {sign} {b} =|Give the result of {a} "
    "{sign} {b}|How much is {a} {sign} {b}?"
).split("|")


def arithmetic(choose: random.Random) -> Record:
    """Make a sum of two numbers with one of three signs."""
    sign = choose.choice("+-*")
    a, b = choose.randint(-99, 999), choose.randint(2, 99)
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    return exchange(choose.choice(_SUMS).format(a=a, sign=sign, b=b), str(result))


# Task, answer: {name} {n} {m} {field} stand in both.
_TASKS = [
    (
        "Write a Python function {name} that multiplies its argument by {n} and caps it at {m}.",
        "def {name}(value):\n    return min(value * {n}, {m})",
    ),
    (
        "I need a function called {name}: it takes a list and returns every {n}th entry, at most "
        "{m} of them.",
        "def {name}(entries):\n    return entries[::{n}][:{m}]",
    ),
    (
        "Python, please: {name}(rows) sums the key '{field}' of all rows above {m}.",
        "def {name}(rows):\n    return sum(r['{field}'] for r in rows if r['{field}'] > {m})",
    ),
    (
        "Write {name}, which says whether the {field} of an order is between {n} and {m}.",
        "def {name}(order):\n    return {n} <= order['{field}'] <= {m}",
    ),
    (
        "Write a SQL query for the {m} rows of table {name} with the highest {field}, without the "
        "first {n}.",
        "SELECT * FROM {name} ORDER BY {field} DESC LIMIT {m} OFFSET {n};",
    ),
    (
        "A JavaScript function {name} should retry a call {n} times and wait {m} ms between.",
        "async function {name}(call) {{\n  for (let i = 0; i < {n}; i++) {{\n    try {{ return "
        "await call(); }} catch {{ await new Promise(r => setTimeout(r, {m})); }}\n  }}\n}}",
    ),
    (
        "How do I write {name} in C++ so that it clamps a {field} to [{n}, {m}]?",
        "int {name}(int {field}) {{\n    return std::clamp({field}, {n}, {m});\n}}",
    ),
    (
        "How do I write {name} in C so that it clamps a {field} to [{n}, {m}]?",
        "int {name}(int {field}) {{\n    return {field} < {n} ? {n} : {field} > {m} ? {m} : "
        "{field};\n}}",
    ),
    (
        "Give me a regular expression in Python, named {name}, for {n} to {m} letters and digits.",
        '{name} = re.compile(r"[A-Za-z0-9]{{{n},{m}}}")',
    ),
    (
        "Make a bash function {name} that keeps the newest {n} files of ${field} and stops after "
        "{m} seconds.",
        '{name}() {{\n  timeout {m} ls -t "${field}" | tail -n +$(({n} + 1)) | xargs rm --\n}}',
    ),
]
_VERBS = "scale limit pick total check merge fetch clamp parse trim rank split count pack".split()
_NOUNS = "price stock batch score queue label order weight ticket signal margin packet".split()


def code(choose: random.Random) -> Record:
    """Make a task for a function by name and numbers, and its code."""
    task, answer = choose.choice(_TASKS)
    values = {
        "name": f"{choose.choice(_VERBS)}_{choose.choice(_NOUNS)}",
        "field": choose.choice(("price", "weight", "score", "total", "depth", "width", "age")),
        "n": choose.randint(2, 19),
        "m": choose.randint(20, 900),
    }
    return exchange(task.format(**values), answer.format(**values), "You write code, nothing else.")
