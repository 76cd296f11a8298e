"""Read the layers of a configuration, lay them over each other and validate what comes out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tuneline.config.pipeline import PipelineConfig
from tuneline.errors import UserError


def presets_dir() -> Path:
    """The folder of presets: `$TUNELINE_PRESETS`, or `config/presets` of the project."""
    default = Path(__file__).resolve().parents[3] / "config" / "presets"
    return Path(os.environ.get("TUNELINE_PRESETS", default))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UserError: the file is missing, not YAML or not a mapping.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    return parse_yaml(path.read_text(encoding="utf-8", errors="replace"), str(path))


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """Parse a YAML mapping; `where` names the text in errors.

    Raises:
        UserError: it is not YAML or not a mapping.
    """
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise UserError(f"{where}{line}: {problem}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UserError(f"{where}: expected `key: value` lines, got a {type(document).__name__}")
    return document


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings, later ones win; lists are replaced whole."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
                merged[key] = merge(merged[key], value)
            else:
                merged[key] = value
    return merged


def build_config(
    *layers: Mapping[str, Any], preset: str | None = None, where: str = "the configuration"
) -> PipelineConfig:
    """Build a configuration from a preset and layers above it.

    Args:
        layers: nested mappings, later ones win.
        preset: name of a file in `presets_dir()`, without its ending.
        where: what an error names as the place of a wrong field.

    Raises:
        UserError: an unknown key, a wrong type, a value out of its limits; every field is named.
    """
    base: dict[str, Any] = {}
    if preset:
        path = presets_dir() / f"{preset}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in presets_dir().glob("*.yaml")))
            raise UserError(f"unknown preset {preset!r}; there are: {known}")
        base = read_yaml(path)
    return validate_config(merge(base, *layers), where)


def validate_config(document: Mapping[str, Any], where: str) -> PipelineConfig:
    """Validate a whole configuration; see `build_config`."""
    try:
        return PipelineConfig.model_validate(document)
    except ValidationError as error:
        problems = "; ".join(_explain(entry) for entry in error.errors())
        raise UserError(f"{where}: {problems}") from None


def _explain(entry: Any) -> str:
    field = ".".join(str(part) for part in entry["loc"]) or "configuration"
    if entry["type"] == "extra_forbidden":
        return f"{field}: there is no such setting"
    if entry["type"] == "missing":
        return f"{field}: is required"
    shown = repr(entry["input"])
    # A whole section as input would bury the message.
    got = f" (got {shown})" if len(shown) < 80 else ""
    return f"{field}: {entry['msg'].removeprefix('Value error, ')}{got}"
