"""Settings of earlier versions: those that are gone, and those that have another name.

A file that a person wrote is refused with a sentence. What a run stored is read without the
setting, or under its new name, so that old runs stay readable.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

# The setting, or a whole section, and why it is gone or what to write instead.
RETIRED: dict[str, str] = {
    "evaluation.review_judge_pairs": "a model's votes decided nothing and are not taken any more; "
    "people vote in human_review",
    "evaluation.paraphrases": "the search for paraphrases of training rows only warned, and was "
    "blind where rows resemble each other anyway; lower data.near_duplicate_jaccard for a "
    "sharper check",
    "evaluation.fair_base_rows": "the base is asked all hold-out rows with examples",
    "evaluation.slices.on_worse": "a part that is clearly worse fails in production and warns on a "
    "laptop",
}
# The old path and the new one.
RENAMED: dict[str, str] = {}


def refusal(path: str) -> str | None:
    """Return why a setting that a person wrote is refused; None if no earlier version had it."""
    if path in RENAMED:
        return f"is called {RENAMED[path]} now"
    gone = _retired(path)
    return f"{RETIRED[gone]}; remove the setting" if gone else None


def current(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored configuration, or the limits of a stored policy, as this version reads it."""
    document = copy.deepcopy(dict(stored))
    for old in (*RETIRED, *RENAMED):
        section, name = _place(document, old)
        if name in section:
            value = section.pop(name)
            if old in RENAMED:
                section, name = _place(document, RENAMED[old], make=True)
                section[name] = value
    if waivers := document.get("waivers"):
        # Without its limit a waiver would be one of the whole item.
        document["waivers"] = [
            _renamed(one) for one in waivers if not _retired(str(one.get("limit")))
        ]
    return document


def _place(document: dict[str, Any], path: str, make: bool = False) -> tuple[dict[str, Any], str]:
    """Return the section that holds a setting, an empty one if there is none, and its name."""
    *sections, name = path.split(".")
    for part in sections:
        inner = document.setdefault(part, {}) if make else document.get(part)
        document = inner if isinstance(inner, dict) else {}
    return document, name


def _retired(path: str) -> str | None:
    """Return the entry of `RETIRED` that a setting, or one in its section, belongs to."""
    return next((gone for gone in RETIRED if f"{path}.".startswith(f"{gone}.")), None)


def _renamed(waiver: Mapping[str, Any]) -> dict[str, Any]:
    limit = waiver.get("limit")
    return {**waiver, "limit": RENAMED.get(str(limit), limit)}
