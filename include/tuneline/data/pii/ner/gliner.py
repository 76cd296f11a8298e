"""Recognise entities by a GLiNER model, whose package is not part of the ML environment.

GLiNER ([Zaratiana et al., 2023](https://arxiv.org/abs/2311.08526)) finds whatever entity types it
is asked for by name, so its answers need no mapping of labels.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tuneline.data.pii.hits import Hit
from tuneline.errors import UserError, first_line

BATCH = 16
# Least probability of an entity, the usual one of the package.
LEAST = 0.5
# GLiNER cuts longer texts off; windows of this many words fit its encoders.
MOST_WORDS, OVERLAP = 200, 30
# The package declares an older transformers than ours, hence without its dependencies.
INSTALL = ".venv-ml/bin/pip install --no-deps 'gliner>=0.2.29,<0.3' sentencepiece"
# How each entity type is asked for.
ASKED = {
    "PERSON": "person",
    "LOCATION": "location",
    "STREET_ADDRESS": "street address",
    "EMAIL_ADDRESS": "email address",
    "PHONE_NUMBER": "phone number",
    "CREDIT_CARD": "credit card number",
    "IBAN_CODE": "iban",
    "US_SSN": "social security number",
    "ID_NUMBER": "identity number",
    "PASSWORD": "password",
    "BIRTH_DATE": "date of birth",
}


class Gliner:
    """A GLiNER model.

    Args:
        directory: its files: gliner_config.json, safetensors and tokenizer.
        wanted: entity types that are looked for.

    Attributes:
        ignored: no labels, since it is asked only for what is looked for.

    Raises:
        UserError: if the package is not installed, or the model can't be loaded.
    """

    ignored: tuple[str, ...] = ()

    def __init__(self, directory: Path, wanted: Collection[str]) -> None:
        if find_spec("gliner") is None:
            raise UserError(
                f"data.pii_ner: {directory} is a GLiNER model, and the package gliner (Apache-2.0) "
                f"is not installed; install it with {INSTALL}"
            )
        self._model = _load(directory)
        self._entity_of = {name: entity for entity, name in ASKED.items() if entity in wanted}

    def find(self, texts: Sequence[str]) -> list[list[Hit]]:
        """Return the entities of each text."""
        windows = [(number, *part) for number, text in enumerate(texts) for part in _windows(text)]
        found: list[dict[Hit, None]] = [{} for _ in texts]
        if windows:
            answers = self._model.inference(
                [texts[number][start:end] for number, start, end in windows],
                list(self._entity_of),
                threshold=LEAST,
                batch_size=BATCH,
            )
            for (number, start, _), entities in zip(windows, answers, strict=True):
                for entity in entities:
                    hit = Hit(
                        start + int(entity["start"]),
                        start + int(entity["end"]),
                        self._entity_of[entity["label"]],
                    )
                    found[number][hit] = None
        return [list(hits) for hits in found]


def _windows(text: str) -> list[tuple[int, int]]:
    """Return the parts of a text that are read at once, which overlap: start and end."""
    words = [match.span() for match in re.finditer(r"\S+", text)]
    step = MOST_WORDS - OVERLAP
    return [
        (words[at][0], words[min(at + MOST_WORDS, len(words)) - 1][1])
        for at in range(0, max(len(words) - OVERLAP, min(len(words), 1)), step)
    ]


def _load(directory: Path) -> Any:
    from gliner import GLiNER

    try:
        return GLiNER.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:
        # A damaged file may raise any error of the library.
        raise UserError(
            f"data.pii_ner: {directory} can't be loaded by GLiNER "
            f"({type(error).__name__}: {first_line(error)})"
        ) from None
