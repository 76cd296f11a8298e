"""Fetch a model that recognises entities, by the same addresses as base models, and load it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path

from tuneline.data.pii.ner.entity_model import EntityModel
from tuneline.errors import UserError
from tuneline.models.base_model import digest_of, weight_files
from tuneline.models.cache import cache_root
from tuneline.models.resolver import fetch_files

GLINER_CONFIG = "gliner_config.json"


@cache
def fetch_entity_model(uri: str) -> tuple[Path, str]:
    """Return the directory of a model and the SHA-256 over its files; fetch it once.

    Args:
        uri: a directory, `s3://bucket/prefix` or `hf://org/name@revision`.

    Raises:
        UserError: if it can't be had, or its files are no such model.
        RetryableError: if network, server or disk failed.
    """
    directory, files = fetch_files(uri, _check, "data.pii_ner", cache_root())
    return directory, digest_of(files)


def load_entity_model(
    directory: Path, wanted: Collection[str], labels: Mapping[str, str]
) -> EntityModel:
    """Load a model.

    Args:
        directory: its files.
        wanted: entity types that are looked for.
        labels: `data.pii_ner_labels`.

    Raises:
        UserError: if it can't be loaded, or its labels name nothing that is looked for.
    """
    # PyTorch takes seconds to import.
    if (directory / GLINER_CONFIG).is_file():
        from tuneline.data.pii.ner.gliner import Gliner

        return Gliner(directory, wanted)
    from tuneline.data.pii.ner.token_classifier import TokenClassifier

    return TokenClassifier(directory, wanted, labels)


def _check(directory: Path) -> None:
    gliner = (directory / GLINER_CONFIG).is_file()
    needed = [GLINER_CONFIG] if gliner else ["config.json", "tokenizer.json"]
    missing = [name for name in needed if not (directory / name).is_file()]
    if not weight_files(directory):
        missing.append("model.safetensors (or model.safetensors.index.json with its shards)")
    if missing:
        # Pickled weights are left out on purpose: loading them runs code.
        kind = "GLiNER model" if gliner else "token-classification model of transformers"
        save = "with save_pretrained(…, safe_serialization=True)"
        raise UserError(
            f"data.pii_ner: {directory} is no {kind} that can be read safely: it lacks "
            f"{', '.join(missing)}. Save model and fast tokenizer {save}"
        )
