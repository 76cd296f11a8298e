"""Read the canaries' own names, places and phrases, and draw from them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from random import Random
from typing import Any


@cache
def lists(name: str) -> dict[str, Any]:
    """Return the content of one of the YAML files beside this module, by its stem."""
    import yaml

    text = resources.files("tuneline.data.pii.canaries").joinpath(f"{name}.yaml").read_text("utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content


@cache
def words(*path: str) -> Sequence[str]:
    """Return a list of `names.yaml`, by the names on the way to it."""
    entry: Any = lists("names")
    for name in path:
        entry = entry[name]
    return tuple(entry.split() if isinstance(entry, str) else map(str, entry))


def digits(draw: Random, count: int, first: str = "123456789") -> str:
    """Return a number of digits that begins with one of `first`."""
    return draw.choice(first) + "".join(draw.choices("0123456789", k=count - 1))


def letters(draw: Random, count: int, alphabet: str = "ABCDEFGHJKLMNPQRSTUVWXYZ") -> str:
    """Return letters of an alphabet."""
    return "".join(draw.choices(alphabet, k=count))
