"""Load the models that find personal data: fetched by address, told apart by their files.

A directory is a token classifier (`token_model`) or a GLiNER model
([Zaratiana et al., 2023](https://arxiv.org/abs/2311.08526)), whose package is not installed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

from tuneline.config import DataConfig
from tuneline.data.pii.find.token_model import TokenModel, Word
from tuneline.errors import UserError, first_line
from tuneline.models.base_model import NETWORKS, digest_of, weight_files
from tuneline.models.cache import cache_root
from tuneline.models.resolver import fetch_files

GLINER_CONFIG = "gliner_config.json"
BATCH = 16
# Words of a window of GLiNER, which cuts longer texts off, and its least probability of an entity.
MOST_WORDS, OVERLAP, LEAST = 200, 30, 0.5
# The package declares an older transformers than ours, hence without its dependencies.
INSTALL = ".venv-ml/bin/pip install --no-deps 'gliner>=0.2.29,<0.3' sentencepiece"


class EntityModel(Protocol):
    """A model that finds personal data, with those of its labels that are not looked for."""

    ignored: tuple[str, ...]

    def words(self, texts: Sequence[str]) -> list[list[Word]]:
        """Return the words of each text that may be personal data, in order."""


@cache
def fetch_entity_model(uri: str) -> tuple[Path, str]:
    """Return the directory of a model, fetched once, and the SHA-256 over its files."""
    directory, files = fetch_files(uri, _check, "data.pii_ner", cache_root())
    return directory, digest_of(files)


def describe_models(config: DataConfig) -> dict[str, str]:
    """Return the models that find personal data by language, with hashes, for the evidence."""
    named = [f"{uri} sha256:{fetch_entity_model(uri)[1]}" for uri in config.pii_models]
    return dict.fromkeys(config.languages, " + ".join(named)) if named else {}


def model_directories(config: DataConfig) -> tuple[Path, ...]:
    """Return the directories of the models (see `fetch_entity_model`)."""
    return tuple(fetch_entity_model(uri)[0] for uri in config.pii_models)


def load_entity_model(
    directory: Path, wanted: Collection[str], labels: Mapping[str, str], *, shifted: bool = False
) -> EntityModel:
    """Load a model (see `TokenModel`); UserError if it can't be, or finds nothing wanted."""
    if (directory / GLINER_CONFIG).is_file():
        return Gliner(directory, wanted)
    return TokenModel(directory, wanted, labels, shifted=shifted)


def _check(directory: Path) -> None:
    gliner = (directory / GLINER_CONFIG).is_file()
    needed = [GLINER_CONFIG] if gliner else ["config.json", "tokenizer.json"]
    missing = [name for name in needed if not (directory / name).is_file()]
    onnx = any((directory / name).is_file() for name in NETWORKS)
    # Pickled weights are left out on purpose: loading them runs code.
    if not onnx and not weight_files(directory):
        missing.append("model.safetensors (or model.safetensors.index.json with its shards)")
    if missing:
        kind = "GLiNER model" if gliner else "token classifier"
        raise UserError(
            f"data.pii_ner: {directory} is not a {kind} "
            f"that can be read safely: it lacks {', '.join(missing)}. Save model and fast "
            "tokenizer with save_pretrained(…, safe_serialization=True)"
        )


class Gliner:
    """A GLiNER model, which finds whatever entity types it is asked for by name."""

    ignored: tuple[str, ...] = ()

    def __init__(self, directory: Path, wanted: Collection[str]) -> None:
        try:
            from gliner import GLiNER

            self._model = GLiNER.from_pretrained(str(directory), local_files_only=True)
        except ImportError:
            raise UserError(
                f"data.pii_ner: {directory} is a GLiNER model, and the package gliner (Apache-2.0) "
                f"is not installed; install it with {INSTALL}"
            ) from None
        except Exception as error:
            # A damaged file may raise any error of the library.
            raise UserError(
                f"data.pii_ner: {directory} can't be loaded by GLiNER "
                f"({type(error).__name__}: {first_line(error)})"
            ) from None
        self._entity_of = {entity.replace("_", " ").lower(): entity for entity in wanted}
        if "us ssn" in self._entity_of:
            self._entity_of["social security number"] = self._entity_of.pop("us ssn")

    def words(self, texts: Sequence[str]) -> list[list[Word]]:
        """See `EntityModel.words`."""
        windows = [(number, *part) for number, text in enumerate(texts) for part in _windows(text)]
        parts = [texts[number][start:end] for number, start, end in windows]
        labels = list(self._entity_of)
        answers = parts and self._model.inference(parts, labels, threshold=LEAST, batch_size=BATCH)
        found: list[set[Word]] = [set() for _ in texts]
        for (number, at, _), entities in zip(windows, answers, strict=True):
            for one in entities:
                kind = self._entity_of[one["label"]]
                found[number].add(Word(at + one["start"], at + one["end"], kind, 1.0))
        return [sorted(words) for words in found]


def _windows(text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of the parts of a text that are read at once, which overlap."""
    words = [match.span() for match in re.finditer(r"\S+", text)]
    for at in range(0, max(len(words) - OVERLAP, min(len(words), 1)), MOST_WORDS - OVERLAP):
        part = words[at : at + MOST_WORDS]
        yield part[0][0], part[-1][1]
