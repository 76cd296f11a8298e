"""What serving engines say of themselves: the model architectures that each one lists.

An engine's own registry is read from its source, without importing it (that
needs a GPU and minutes): from the installed package where there is one, else
from `engine_registry.json`, a snapshot of named versions that this same reader
made from the engines' wheels and repositories.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

SNAPSHOT = "engine_registry.json"
# vLLM accepts these values of --max-lora-rank (vllm/config/lora.py, MaxLoRARanks).
VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class Registry:
    """The models that one version of an engine lists.

    `key` says what the names are: `architecture` (as in `architectures` of a
    config.json) or `model_type`.
    """

    engine: str
    version: str
    source: str
    key: Literal["architecture", "model_type"]
    names: frozenset[str]
    live: bool = False

    def lists(self, architecture: str, model_type: str) -> bool:
        """Whether the engine lists a model of this architecture and type."""
        return (architecture if self.key == "architecture" else model_type) in self.names


def vllm_architectures(models: Path) -> frozenset[str]:
    """The text generation models of vLLM, from `vllm/model_executor/models/registry.py`.

    Args:
        models: the folder `vllm/model_executor/models`.

    Raises:
        ValueError: the file does not have the form of vLLM 0.6 to 0.32.
    """
    tree = ast.parse((models / "registry.py").read_text())
    for node in tree.body:
        names = {target.id for target in getattr(node, "targets", ()) if hasattr(target, "id")}
        if "_TEXT_GENERATION_MODELS" in names and isinstance(node, ast.Assign):
            assert isinstance(node.value, ast.Dict)
            return frozenset(_texts(node.value.keys))
    raise ValueError(f"{models / 'registry.py'} has no _TEXT_GENERATION_MODELS")


def sglang_architectures(models: Path) -> frozenset[str]:
    """The models of SGLang: the `EntryClass` of each file in `sglang/srt/models`.

    Args:
        models: that folder.

    Raises:
        ValueError: no file names a model.
    """
    found: set[str] = set()
    for path in sorted(models.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and _assigns(node, "EntryClass"):
                value = node.value
                entries = value.elts if isinstance(value, ast.List | ast.Tuple) else [value]
                found.update(entry.id for entry in entries if isinstance(entry, ast.Name))
    if not found:
        raise ValueError(f"{models} names no model")
    return frozenset(found)


def _assigns(node: ast.Assign, name: str) -> bool:
    return any(isinstance(target, ast.Name) and target.id == name for target in node.targets)


def _texts(nodes: list[ast.expr | None]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


_READERS = {
    "vllm": ("model_executor/models", vllm_architectures),
    "sglang": ("srt/models", sglang_architectures),
}


@cache
def snapshot() -> Mapping[str, Registry]:
    """The registries that ship with the package, by engine."""
    text = resources.files("tuneline.deployment").joinpath(SNAPSHOT).read_text("utf-8")
    return {
        engine: Registry(
            engine, entry["version"], entry["source"], entry["key"], frozenset(entry["names"])
        )
        for engine, entry in json.loads(text).items()
    }


def registry(engine: str) -> Registry:
    """The registry of an engine: the installed one's where there is one, else the snapshot's.

    Raises:
        KeyError: there is no such engine.
    """
    known = snapshot()[engine]
    if engine not in _READERS:
        return known
    spec = find_spec(engine)
    if spec is None or not spec.submodule_search_locations:
        return known
    folder, read = _READERS[engine]
    models = Path(spec.submodule_search_locations[0]) / folder
    try:
        names = read(models)
    except (OSError, ValueError, SyntaxError):
        # A version whose files look otherwise: the snapshot is named as the source instead.
        return known
    version = metadata.version(engine)
    return Registry(engine, version, f"installed {engine} {version}", known.key, names, live=True)


def vllm_lora_rank(rank: int) -> int | None:
    """The smallest `--max-lora-rank` of vLLM that holds an adapter, None when none does."""
    return next((allowed for allowed in VLLM_LORA_RANKS if allowed >= rank), None)
