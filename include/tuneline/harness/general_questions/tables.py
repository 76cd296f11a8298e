"""Read the tables and texts that questions are made of."""

from __future__ import annotations

import json
from importlib import resources

from tuneline.harness.general_questions.question import Question


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def short_questions() -> list[Question]:
    """Return the short questions, whose answers are generated, in the order of their file."""
    return [Question(**json.loads(line)) for line in _text("short.jsonl").splitlines()]


def table(name: str) -> list[list[str]]:
    """Return the rows of a table, each the fields between its bars."""
    return [
        [field.strip() for field in line.split(" | ")]
        for line in _text(f"{name}.txt").splitlines()
        if line.strip() and not line.startswith("#")
    ]


def passages() -> list[tuple[str, list[str]]]:
    """Return each question about a text: the text, and the question with its answers."""
    found: list[tuple[str, list[str]]] = []
    passage = ""
    for row in table("passages"):
        if row[0].startswith("> "):
            passage = row[0].removeprefix("> ")
        else:
            found.append((passage, row))
    return found


def paragraphs() -> list[str]:
    """Return general texts of several registers, one paragraph each."""
    blocks = _text("paragraphs.txt").split("\n\n")
    return [" ".join(block.split()) for block in blocks if not block.startswith("#")]
