"""Read the layers of a configuration, merge them and validate the result."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from tuneline.config.pipeline import PipelineConfig
from tuneline.config.retired import refusal
from tuneline.errors import UserError
from tuneline.machine.checkout import project_root

# The parser in C, where libyaml is there: a folder of model files is read at every parse of the
# DAGs, and the one in Python takes ten times as long.
_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def presets_dir() -> Path:
    """Return the folder of presets: `$TUNELINE_PRESETS`, or `config/presets` of the project."""
    default = project_root() / "config" / "presets"
    return Path(os.environ.get("TUNELINE_PRESETS", default))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UserError: if the file is missing, not UTF-8, not YAML or not a mapping.
    """
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {problem}; name a YAML file of settings")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; write the settings as YAML in UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """Parse a YAML mapping; `where` names the text in errors.

    Raises:
        UserError: if it is not YAML or not a mapping.
    """
    try:
        document = _loaded(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it can't be parsed"
        raise UserError(f"{where}{line}: not valid YAML: {problem}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UserError(f"{where}: expected `key: value` lines, got a {type(document).__name__}")
    return document


def _loaded(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_SafeLoader)  # noqa: S506 - it is the safe one
    except yaml.YAMLError:
        # The parser in Python names the line at which a person has to look.
        return yaml.safe_load(text)


def check_sections(document: Mapping[str, Any], where: str) -> None:
    """Refuse a section that is not a mapping, which merging another layer would hide.

    Args:
        document: one layer.
        where: its place, for an error.

    Raises:
        UserError: if there is such a section; each is named.
    """
    wrong = [
        f"{name}: expected settings (`{name}:` and lines below it), got {document[name]!r:.80}"
        for name, field in PipelineConfig.model_fields.items()
        if name in document
        and get_origin(field.annotation) is not list
        and _section_of(field.annotation) is not None
        and not isinstance(document[name], Mapping)
    ]
    if wrong:
        raise UserError(f"{where}: {'; '.join(wrong)}")


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings: later ones win, and lists are replaced as a whole."""
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
        layers: nested mappings; later ones win.
        preset: name of a file in `presets_dir()`, without its extension.
        where: the place of a wrong field, for an error.

    Raises:
        UserError: if a key is unknown, a type is wrong or a value is outside its limits; every
            such field is named.
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
        problems = "; ".join(explain(entry) for entry in error.errors())
        raise UserError(f"{where}: {problems}") from None


def explain(entry: Any, root: type[BaseModel] = PipelineConfig) -> str:
    """Return one sentence for an error of pydantic: the setting, and why it is refused.

    Args:
        entry: an entry of `ValidationError.errors()`.
        root: the section that was validated.
    """
    field = ".".join(str(part) for part in entry["loc"]) or "configuration"
    if entry["type"] == "extra_forbidden":
        if root is PipelineConfig and (gone := refusal(field)):
            return f"{field}: {gone}"
        return f"{field}: there is no such setting{_nearest(entry['loc'], root)}"
    if entry["type"] == "missing":
        return f"{field}: is required"
    shown = repr(entry["input"])
    # A whole section as input would bury the message.
    got = f" (got {shown})" if len(shown) < 80 else ""
    return f"{field}: {entry['msg'].removeprefix('Value error, ')}{got}"


def _nearest(place: Sequence[str | int], root: type[BaseModel]) -> str:
    """Return a question that names the settings spelled most like an unknown one, or ''."""
    section: type[BaseModel] | None = root
    for part in place[:-1]:
        field = section.model_fields.get(str(part)) if section else None
        section = _section_of(field.annotation) if field else None
    names = list(section.model_fields) if section else []
    close = difflib.get_close_matches(str(place[-1]), names, n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a field holds, if any."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None
