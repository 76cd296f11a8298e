"""Base models: a checked Hugging Face directory with its identity and its licence."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.errors import UserError
from tuneline.models.license import ORIGIN_FILE, read_license

# Names and hashes of the files of a model that was fetched.
FILES_FILE = "tuneline_files.json"
_OURS = {ORIGIN_FILE, FILES_FILE}
_INDEX = "model.safetensors.index.json"

# The networks of a token classifier in ONNX, the faster one first.
INT8 = "onnx/model_int8.onnx"
NETWORKS = (INT8, "onnx/model_q4.onnx")

# Files that belong to a model. Pickled weights (*.bin, *.pt) are left out on purpose: loading
# them runs code.
_MODEL_PATTERNS = (
    "*.json",
    "*.safetensors",
    "*.jinja",
    "*.model",
    "merges.txt",
    "vocab.txt",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
    "README.md",
)


@dataclass(frozen=True)
class BaseModel:
    """A resolved base model.

    Attributes:
        uri: the address that was requested.
        path: directory with config.json, safetensors, tokenizer files and chat template.
        digest: SHA-256 over the sorted lines `<file sha256>  <file name>`; two directories
            with the same digest hold the same model.
        license: SPDX identifier (`LicenseRef-…` for licences without one), or None.
        license_source: place of the licence, or the places that were searched without success.
        revision: identifier of the content at its source: package version, commit or digest.
        architecture: first entry of `architectures`, for example LlamaForCausalLM.
        context_length: context from the configuration, in tokens.
        vocab_size: rows of the embedding.
        files: SHA-256 of each file by name.
    """

    uri: str
    path: Path
    digest: str
    license: str | None
    license_source: str
    revision: str
    architecture: str
    context_length: int
    vocab_size: int
    files: Mapping[str, str]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: if the file is missing or is not a JSON object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} must hold a JSON object, not a {type(document).__name__}")
    return document


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a model, in the order of their names.

    Raises:
        UserError: if the index names a shard that is missing.
    """
    if (directory / _INDEX).is_file():
        shards = _shards(directory, {path.name for path in model_files(directory)})
        return [directory / name for name in shards]
    single = directory / "model.safetensors"
    return [single] if single.is_file() else []


def _shards(directory: Path, present: Collection[str]) -> list[str]:
    """Return the shards that the index names.

    Raises:
        UserError: if one of them is not among the files that are present.
    """
    shards = sorted(set(read_json(directory / _INDEX).get("weight_map", {}).values()))
    missing = [name for name in shards if name not in present]
    if missing or not shards:
        raise UserError(
            f"{directory} lacks {', '.join(missing) or 'the shards'} that {_INDEX} names; copy the "
            "model again, whole"
        )
    return shards


def is_weights(name: str) -> bool:
    """Return True for a file of weights, whose size may be many gigabytes."""
    return name.endswith((".safetensors", ".onnx"))


def check_directory(
    directory: Path, names: Collection[str] | None = None, title: str = ""
) -> dict[str, Any]:
    """Check that a model has everything that fine-tuning needs.

    Args:
        directory: the model's files, or all but its weights.
        names: names of all its files, where the weights are elsewhere.
        title: the model's name in an error; that of the directory by default.

    Returns:
        Its config.json.

    Raises:
        UserError: if something is missing; the message names all of it.
    """
    present = {path.name for path in model_files(directory)} if names is None else set(names)
    missing = [] if "config.json" in present else ["config.json"]
    if not _weights_listed(directory, present):
        missing.append("model.safetensors (or model.safetensors.index.json with its shards)")
    missing += [name for name in ("tokenizer.json", "tokenizer_config.json") if name not in present]
    if not _has_chat_template(directory):
        missing.append(
            "a chat template (chat_template.jinja, or in tokenizer_config.json; the instruct or "
            "chat variant of a model has one)"
        )
    if missing:
        raise UserError(
            f"{title or directory} is not a complete base model: it lacks {'; '.join(missing)}. "
            "Save it with save_pretrained of the model and of the tokenizer"
        )
    return read_json(directory / "config.json")


def _weights_listed(directory: Path, present: Collection[str]) -> bool:
    if _INDEX not in present:
        return "model.safetensors" in present
    return bool(_shards(directory, present))


def _has_chat_template(directory: Path) -> bool:
    if any((directory / f"chat_template.{kind}").is_file() for kind in ("jinja", "json")):
        return True
    config = directory / "tokenizer_config.json"
    return config.is_file() and bool(read_json(config).get("chat_template"))


def is_model_file(name: str) -> bool:
    """Return True for the name of a file that belongs to a model.

    Files in sub-folders usually hold other formats of the same model.
    """
    return "/" not in name and any(fnmatch.fnmatchcase(name, p) for p in _MODEL_PATTERNS)


def model_files(directory: Path) -> list[Path]:
    """Return the model's files: top level, without hidden ones and our own notes."""
    return sorted(
        path
        for path in directory.iterdir()
        if path.is_file() and not path.name.startswith(".") and path.name not in _OURS
    )


def classifier_files(directory: Path) -> dict[str, Path]:
    """Return the files of a model by name, with the networks of a token classifier in ONNX."""
    found = {path.name: path for path in model_files(directory)}
    networks = {name: directory / name for name in NETWORKS}
    return found | {name: path for name, path in networks.items() if path.is_file()}


def is_classifier_file(name: str) -> bool:
    """Return True for the name of a file that belongs to a token classifier."""
    return is_model_file(name) or name in NETWORKS


def digest_of(files: Mapping[str, str]) -> str:
    """Return one SHA-256 over the hashes of the model's files, in the order of their names."""
    lines = "".join(
        f"{sha256}  {name}\n" for name, sha256 in sorted(files.items()) if name not in _OURS
    )
    return hashlib.sha256(lines.encode()).hexdigest()


def describe(
    uri: str, directory: Path, files: Mapping[str, str], *, revision: str | None = None
) -> BaseModel:
    """Describe a model directory whose files are hashed already.

    Args:
        uri: the address that was requested.
        directory: the model's files, or all but its weights.
        files: SHA-256 of all its files by name.
        revision: revision at the source; None takes the digest.

    Raises:
        UserError: if the directory is incomplete or its configuration unusable.
    """
    config = check_directory(directory, files)
    text_config = config.get("text_config", config)
    architectures = config.get("architectures") or []
    where = directory / "config.json"
    if not architectures:
        raise UserError(f"{where} names no `architectures`; save the model with save_pretrained")
    sizes = {}
    for field in ("max_position_embeddings", "vocab_size"):
        value = text_config.get(field)
        if not isinstance(value, int) or value <= 0:
            raise UserError(f"{where}: {field} must be a positive number, not {value!r}")
        sizes[field] = value
    license_id, license_source = read_license(directory, config)
    digest = digest_of(files)
    return BaseModel(
        uri=uri,
        path=directory,
        digest=digest,
        license=license_id,
        license_source=license_source,
        revision=revision or digest,
        architecture=str(architectures[0]),
        context_length=sizes["max_position_embeddings"],
        vocab_size=sizes["vocab_size"],
        files=dict(files),
    )
