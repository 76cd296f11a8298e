"""Base models: a checked Hugging Face directory with its identity and its licence."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.errors import UserError, first_line

# A note that the resolver writes beside the files of a fetched model.
ORIGIN_FILE = "tuneline_origin.json"

# Hubs write licences in lower case, and name licences that SPDX does not list.
# SPDX keeps `LicenseRef-` for those: https://spdx.github.io/spdx-spec/v3.0.1/annexes/spdx-license-expressions/
_SPDX = {
    name.lower(): name
    for name in (
        *("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "CC0-1.0", "CC-BY-4.0"),
        *("CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0", "MPL-2.0"),
        "Unlicense",
    )
}
_SPDX |= {f"{name}-3.0": f"{name.upper()}-3.0-only" for name in ("gpl", "agpl", "lgpl")}
# SPDX allows no plus in a name.
_SPDX["openrail++"] = "LicenseRef-creativeml-openrail-plus-m"

# First words that identify a licence text without doubt.
_TEXTS = (
    (re.compile(r"Apache License,?\s+Version 2\.0", re.I), "Apache-2.0"),
    (re.compile(r"\bMIT License\b", re.I), "MIT"),
    (re.compile(r"Permission is hereby granted, free of charge, to any person", re.I), "MIT"),
    (re.compile(r"(?:^|\bCommons )Attribution 4\.0\s+International\b", re.I | re.M), "CC-BY-4.0"),
    (re.compile(r"LLAMA 4 COMMUNITY LICENSE", re.I), "LicenseRef-llama4"),
    (re.compile(r"LLAMA 3\.3 COMMUNITY LICENSE", re.I), "LicenseRef-llama3.3"),
    (re.compile(r"LLAMA 3\.2 COMMUNITY LICENSE", re.I), "LicenseRef-llama3.2"),
    (re.compile(r"LLAMA 3\.1 COMMUNITY LICENSE", re.I), "LicenseRef-llama3.1"),
    (re.compile(r"META LLAMA 3 COMMUNITY LICENSE", re.I), "LicenseRef-llama3"),
    (re.compile(r"LLAMA 2 COMMUNITY LICENSE", re.I), "LicenseRef-llama2"),
    (re.compile(r"Gemma Terms of Use", re.I), "LicenseRef-gemma"),
    (re.compile(r"Tongyi Qianwen RESEARCH LICENSE", re.I), "LicenseRef-tongyi-qianwen-research"),
    (re.compile(r"Tongyi Qianwen LICENSE", re.I), "LicenseRef-tongyi-qianwen"),
    (re.compile(r"Qwen RESEARCH LICENSE", re.I), "LicenseRef-qwen-research"),
    (re.compile(r"Qwen LICENSE AGREEMENT", re.I), "LicenseRef-qwen"),
    (re.compile(r"Mistral AI Research License", re.I), "LicenseRef-MRL-0.1"),
    (re.compile(r"Mistral AI Non-Production License", re.I), "LicenseRef-MNPL-0.1"),
    (re.compile(r"DEEPSEEK LICENSE AGREEMENT", re.I), "LicenseRef-deepseek"),
    (re.compile(r"Falcon 180B TII License", re.I), "LicenseRef-falcon-180b"),
    (re.compile(r"Falcon 2 11B TII License", re.I), "LicenseRef-falcon-2-11b"),
    (re.compile(r"TII Falcon LLM License Version 1\.0", re.I), "LicenseRef-falcon-llm-1.0"),
    (re.compile(r"TII Falcon(?:[- ]LLM)? License", re.I), "LicenseRef-falcon-llm-license"),
    (re.compile(r"BigScience RAIL License", re.I), "LicenseRef-bigscience-bloom-rail-1.0"),
    (re.compile(r"BigScience\s+Open\s?RAIL", re.I), "LicenseRef-bigscience-openrail-m"),
    (re.compile(r"BigCode\s+Open\s?RAIL", re.I), "LicenseRef-bigcode-openrail-m"),
    (re.compile(r"CreativeML\s+Open\s?RAIL\+\+", re.I), "LicenseRef-creativeml-openrail-plus-m"),
    (re.compile(r"CreativeML\s+Open\s?RAIL", re.I), "LicenseRef-creativeml-openrail-m"),
)
_TEXT_CHARACTERS = 2000


def license_of_text(text: str) -> str | None:
    """Return the SPDX identifier that the first words of a licence text give, None if none."""
    found = (name for pattern, name in _TEXTS if pattern.search(text[:_TEXT_CHARACTERS]))
    return next(found, None)


def to_spdx(name: str) -> str | None:
    """Return the SPDX identifier for a licence name as hubs and GGUF files write it."""
    key = name.strip().lower()
    if key in ("", "other", "unknown", "none"):
        return None
    return _SPDX.get(key, "LicenseRef-" + re.sub(r"[^A-Za-z0-9.-]+", "-", key))


def read_license(directory: Path, config: dict[str, Any]) -> tuple[str | None, str]:
    """Read a model's licence.

    The sources in order: the resolver's note on the origin, the model card's front matter,
    config.json, a licence text.
    """
    origin = directory / ORIGIN_FILE
    if origin.is_file():
        noted = json.loads(origin.read_text(encoding="utf-8"))
        if noted.get("license"):
            return str(noted["license"]), str(noted["license_source"])
    card = _front_matter(directory / "README.md")
    if card.get("license"):
        return _of_card(card)
    if isinstance(config.get("license"), str):
        return to_spdx(config["license"]), "config.json: license"
    for path in sorted(directory.glob("LICEN[SC]E*")):
        identifier = license_of_text(path.read_text(encoding="utf-8", errors="replace"))
        if identifier is not None:
            return identifier, f"{path.name}: its text"
    return None, "not found in the origin note, README.md, config.json or a LICENSE file"


def _of_card(card: dict[str, Any]) -> tuple[str | None, str]:
    """Return the licence that a model card states, and the field that states it."""
    named = card["license"]
    if isinstance(named, list):
        # The hub does not say which of them binds, so all of them do.
        names = [to_spdx(str(name)) or "NOASSERTION" for name in named]
        return " AND ".join(names), "README.md: license"
    if str(named).lower() == "other" and card.get("license_name"):
        return to_spdx(str(card["license_name"])), "README.md: license_name"
    return to_spdx(str(named)), "README.md: license"


def _front_matter(path: Path) -> dict[str, Any]:
    """Return the YAML between the first two `---` lines of a model card; {} without any."""
    import yaml

    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    match = re.match(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", text, re.S)
    if not match:
        return {}
    try:
        document = yaml.safe_load(match.group(1))
    except yaml.YAMLError:
        return {}
    return document if isinstance(document, dict) else {}


# Classes that take everything from tokenizer.json.
_GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")


def load_tokenizer(path: Path) -> Any:
    """Load the fast tokenizer of a model's directory, with its chat template."""
    import transformers

    try:
        kind = "PreTrainedTokenizerFast" if _is_generic(path) else "AutoTokenizer"
        tokenizer: Any = getattr(transformers, kind).from_pretrained(path, local_files_only=True)
    except Exception as error:
        # A damaged file may raise any error of the library.
        reason = f"{type(error).__name__}: {first_line(error) if str(error) else ''}"
        raise UserError(f"the tokenizer in {path} can't be loaded: {reason}") from None
    if not tokenizer.is_fast:
        raise UserError(f"{path} has a slow tokenizer only; convert it so it has a tokenizer.json")
    return tokenizer


def _is_generic(path: Path) -> bool:
    """Return True for a Llama's tokenizer of a generic class."""
    files = (path / "tokenizer_config.json", path / "config.json")
    if not all(file.is_file() for file in files):
        return False
    settings, model = map(read_json, files)
    named = settings.get("tokenizer_class") in _GENERIC_CLASSES and "auto_map" not in settings
    return named and model.get("model_type") == "llama"


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
    *("*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "vocab.txt"),
    *("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "README.md"),
)


@dataclass(frozen=True)
class BaseModel:
    """A resolved base model."""

    uri: str
    path: Path  # with config.json, safetensors, tokenizer files and chat template
    digest: str  # SHA-256 over the sorted lines `<file sha256>  <file name>`
    license: str | None  # SPDX identifier, `LicenseRef-…` for a licence without one
    license_source: str  # or the places that were searched without success
    revision: str  # of the content at its source: package version, commit or digest
    architecture: str  # first entry of `architectures`
    context_length: int  # tokens
    vocab_size: int
    files: Mapping[str, str]  # SHA-256 by name


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
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
    """Return the safetensors files of a model, in the order of their names."""
    if (directory / _INDEX).is_file():
        shards = _shards(directory, {path.name for path in model_files(directory)})
        return [directory / name for name in shards]
    single = directory / "model.safetensors"
    return [single] if single.is_file() else []


def _shards(directory: Path, present: Collection[str]) -> list[str]:
    """Return the shards that the index names."""
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

    `names` are those of all files where the weights are elsewhere; `title` names the model in an
    error, which lists all that is missing. Returns config.json.
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
    """Return True for the name of a file that belongs to a model."""
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

    `directory` holds all files but perhaps the weights; without a `revision` the digest is taken.
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
