"""Settings of earlier versions that are gone.

A file that a person wrote is refused with a sentence. What a run stored is read without the
setting, so that old runs stay readable.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

# The setting, or a whole section, and why it is gone or what to write instead.
RETIRED: dict[str, str] = {
    "data.queries": "a DAG of yours writes the rows of a database as Parquet (docs/do/tables.md)",
    "data.spacy_models": "names are found by the models that data.pii_ner names",
    "data.pii_max_leak": "what is left in the rows decides; data.pii_max_left limits it",
    "data.pii_max_leak_ner": "what is left in the rows decides; data.pii_max_left limits it",
    "data.template_repeats": "rows that differ in personal data are compared as they were before "
    "scrubbing, so that none of them has to be kept by number",
    "governance.keyless": "releases are signed by a key; set governance.signing_key and public_key",
    "evaluation.review_judge_pairs": "a model's votes decided nothing and are not taken any more; "
    "people vote in human_review",
    "evaluation.paraphrases": "the search for paraphrases of training rows only warned, and was "
    "blind where rows resemble each other anyway; lower data.near_duplicate_jaccard for a "
    "sharper check",
    "evaluation.fair_base_rows": "the base is asked all hold-out rows with examples",
    "evaluation.slices.on_worse": "a part that is clearly worse fails in production and warns on a "
    "laptop",
}


def refusal(path: str) -> str | None:
    """Return why a setting that a person wrote is refused; None if no earlier version had it."""
    gone = _retired(path)
    return f"{RETIRED[gone]}; remove the setting" if gone else None


def current(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored configuration, or the limits of a stored policy, as this version reads it."""
    document = copy.deepcopy(dict(stored))
    for old in RETIRED:
        *sections, name = old.split(".")
        place = document
        for part in sections:
            inner = place.get(part)
            place = inner if isinstance(inner, dict) else {}
        place.pop(name, None)
    if waivers := document.get("waivers"):
        # One of a whole item, as it was before, accepts nothing any more.
        document["waivers"] = [
            waiver
            for waiver in waivers
            if waiver.get("measurement")
            or (waiver.get("limit") and not _retired(str(waiver["limit"])))
        ]
    return document


def _retired(path: str) -> str | None:
    """Return the entry of `RETIRED` that a setting, or one in its section, belongs to."""
    return next((gone for gone in RETIRED if f"{path}.".startswith(f"{gone}.")), None)
