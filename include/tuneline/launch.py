"""Start a run from the fields of the trigger form."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, cast

from pydantic import BaseModel, TypeAdapter

from tuneline.config import (
    Model,
    PipelineConfig,
    build_config,
    check_sections,
    merge,
    parse_yaml,
    presets_dir,
    read_policy,
)
from tuneline.config.policy import refuse_unbounded
from tuneline.config.section import described
from tuneline.data.sources.find_files import dataset_version, find_here
from tuneline.data.sources.records import check_file
from tuneline.environment import code_identity
from tuneline.errors import TunelineError, UserError
from tuneline.run import Run
from tuneline.store import open_store

# The choices of the form's tracking field.
_TRACKERS = {
    "mlflow": ["mlflow"],
    "wandb": ["wandb"],
    "mlflow and wandb": ["mlflow", "wandb"],
    "none": [],
}
# What the form calls a choice that is left to the preset and the model's file.
_UNCHANGED = {"null": "as preset and model file say"}
_ABSENT: Any = object()


@dataclass(frozen=True)
class FormField:
    """A field of the trigger form that gives one setting.

    Attributes:
        setting: the setting, its parts separated by dots.
        section: heading below which it is folded; None shows it at once.
        choices: the values that it offers and those of the setting; None for the setting's own.
    """

    setting: str
    section: str | None
    title: str
    choices: Mapping[str, Any] | None = None

    def schema(self) -> dict[str, Any]:
        """Return JSON Schema keywords of the field; null leaves the setting alone."""
        *sections, name = self.setting.split(".")
        owner: type[BaseModel] = PipelineConfig
        for section in sections:
            owner = cast("type[BaseModel]", owner.model_fields[section].annotation)
        field = described(owner)[name]
        # The bounds of the field stand in its own schema, not in that of its type.
        annotated: Any = Annotated[field.annotation, field]
        whole = TypeAdapter(annotated).json_schema()
        schema = next((kind for kind in whole.get("anyOf", ()) if kind["type"] != "null"), whole)
        keywords = {key: schema[key] for key in ("minimum", "maximum") if key in schema}
        values = list(self.choices or schema.get("enum", ()))
        if schema["type"] == "boolean":
            values = [True, False]
            keywords["values_display"] = {"true": "yes", "false": "no"}
        if values:
            shown = {**keywords.get("values_display", {}), **_UNCHANGED}
            keywords |= {"enum": [None, *values], "values_display": shown}
        kind = "string" if self.choices else schema["type"]
        return {
            "type": [kind, "null"],
            "default": None,
            "title": self.title,
            # The form shows the text as it is.
            "description": (field.description or "").replace("`", ""),
            **({"section": self.section} if self.section else {}),
            **keywords,
        }

    def value(self, given: Any) -> Any:
        """Return the value of the setting for what was filled in."""
        if self.choices is None:
            return given
        if given not in self.choices:
            raise UserError(f"{self.title}: choose one of {', '.join(self.choices)}, not {given!r}")
        return self.choices[given]


_TRAINING, _RELEASE, _OTHER = "Training", "Evaluation and release", "Other settings"
FORM_FIELDS = {
    "data": FormField("data.source", None, "Dataset"),
    "license": FormField("data.license", None, "Licence of the dataset"),
    "intended_use": FormField("governance.intended_use", None, "Intended use"),
    "base_model": FormField("base_model", None, "Base model"),
    "label_field": FormField("data.label_field", None, "Field of the class"),
    "max_tokens": FormField("data.max_tokens", _TRAINING, "Longest row"),
    "epochs": FormField("training.epochs", _TRAINING, "Epochs"),
    "qlora": FormField("training.qlora", _TRAINING, "QLoRA"),
    "tracking": FormField("training.tracking", _TRAINING, "Experiment tracking", _TRACKERS),
    "engine": FormField("deployment.engine", _RELEASE, "Serving engine"),
    "min_metric": FormField("evaluation.min_metric", _RELEASE, "Lowest metric that may ship"),
    "target_hardware": FormField("deployment.target_hardware", _RELEASE, "Target hardware"),
    "review": FormField("evaluation.review", _RELEASE, "Blind human review"),
    "approval": FormField("approval", _RELEASE, "Approval before release"),
    "reason": FormField("reason", _RELEASE, "Reason"),
}


def form_fields() -> dict[str, dict[str, Any]]:
    """Return the fields of the trigger form: JSON Schema keywords and a default for each.

    A field left at None takes the value of the model's file or of the preset.
    """
    presets = sorted(path.stem for path in presets_dir().glob("*.yaml"))
    preset = {
        "type": "string",
        "default": "laptop",
        "enum": presets or ["laptop"],
        "title": "Preset",
        "description": "Settings to start from (config/presets).",
    }
    overrides = {
        "type": ["string", "null"],
        "default": "",
        "format": "multiline",
        "title": "Other settings (YAML)",
        "section": _OTHER,
        "description": "Any setting that has no field above, e.g. training: {r: 32}",
    }
    fields = {name: field.schema() for name, field in FORM_FIELDS.items()}
    return {"data": fields.pop("data"), "preset": preset, **fields, "overrides": overrides}


def config_from_fields(
    fields: Mapping[str, Any],
    where: str | None = None,
    settings: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
) -> PipelineConfig:
    """Build the configuration that a filled form describes.

    The nearest wins: a field over `overrides` over the model's file over the preset. A field and
    `overrides` that give the same setting other values are refused.

    Args:
        fields: values of `form_fields()`; a missing one takes its default.
        where: file of `overrides`, for an error; None if they stand in the form.
        settings: those of the model's file. The form shows some of them in its fields, so that a
            field which repeats one of them says nothing of its own.
        names: names of fields on a command line, for an error.

    Raises:
        UserError: if a field is unknown, no dataset is named, or a setting is refused.
    """
    known = form_fields()
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise UserError(
            f"unknown field {', '.join(map(repr, unknown))}; the fields are "
            f"{', '.join(known)}; other settings go into `overrides`"
        )
    overrides = parse_yaml(str(fields.get("overrides") or ""), where or "overrides")
    check_sections(overrides, where or "overrides")
    layer: dict[str, Any] = {}
    for name, field in FORM_FIELDS.items():
        given = fields.get(name)
        if given in (None, ""):
            continue
        value = field.value(given)
        if value == _setting(settings or {}, field.setting):
            continue
        other = _setting(overrides, field.setting)
        if other not in (_ABSENT, value):
            raise UserError(
                f"{(names or {}).get(name, f'the field {name}')} says {value!r} for "
                f"{field.setting}, {where or 'overrides'} says {other!r}; leave one of them out"
            )
        for part in reversed(field.setting.split(".")):
            value = {part: value}
        layer = merge(layer, value)
    merged = merge(settings or {}, overrides, layer)
    if not merged.get("data", {}).get("source"):
        raise UserError("data: name a dataset (a path, file:// or s3:// URI)")
    preset = fields.get("preset") or known["preset"]["default"]
    return build_config(merged, preset=preset, where=where or "the run's settings")


def _setting(document: Any, setting: str) -> Any:
    """Return a setting of a nested mapping, `_ABSENT` if it is not there."""
    for part in setting.split("."):
        document = document.get(part, _ABSENT) if isinstance(document, Mapping) else _ABSENT
    return document


def create_run(
    fields: Mapping[str, Any],
    store: str,
    run_id: str,
    meta: Mapping[str, Any] | None = None,
    where: str | None = None,
    *,
    model: Model | None = None,
    names: Mapping[str, str] | None = None,
    check: Callable[[Run], object] | None = None,
) -> Run:
    """Validate a filled form and create the run in the store; a run that is refused leaves nothing.

    Args:
        fields, where, names: see `config_from_fields`.
        meta: further fields of `run.json` (the Airflow run, the user).
        model: the model whose file lies below the form; None for a run without one.
        check: refuses a run before it is written.

    Raises:
        UserError: if the form is wrong, dataset or base model can't be used, `check` refuses the
            run, or the run id is taken by a run with another configuration.
    """
    config = config_from_fields(fields, where, model.settings if model else None, names)
    if model:
        _refuse_unlike(config, model)
    config, parameters = check_inputs(config)
    refuse_unbounded(config, read_policy(), by_person=bool((meta or {}).get("started_by")))
    described: dict[str, Any] = {
        "code": code_identity(),
        "preset": fields.get("preset", "laptop"),
        **(meta or {}),
    }
    described["base_parameters"] = parameters
    described["dataset_version"] = None
    # The pods may reach what this machine does not; they say what is wrong with it.
    with suppress(TunelineError):
        described["dataset_version"] = dataset_version(config.data.sources).files
    name = safe_run_id(run_id, model.suffix if model else "")
    if check is not None:
        meta = {**described, "policy": read_policy().recorded()}
        check(Run(open_store(store), f"runs/{name}", config, meta))
    return Run.create(store, name, config, described)


def _refuse_unlike(config: PipelineConfig, model: Model) -> None:
    """Refuse what a run may not set otherwise than its model's file."""
    if model.file_name and config.name != model.name:
        raise UserError(
            f"overrides: name: this DAG trains {model.name}, not {config.name}; another model gets "
            "its own file in config/models"
        )
    command = config.evaluation.scorer
    if command not in (None, _setting(model.settings, "evaluation.scorer")):
        raise UserError(
            f"evaluation.scorer is {command}, which the file of {model.name} does not say; a run "
            "can't bring a command of its own"
        )
    # The laptop profile only warns of much that production stops.
    if model.profile == "production" and config.profile != "production":
        raise UserError(
            f"profile is {config.profile}, but the file of {model.name} says production, which a "
            "run can't leave; choose a preset of that profile, or change config/models"
        )


def check_inputs(config: PipelineConfig) -> tuple[PipelineConfig, int]:
    """Refuse what `fit_inputs` refuses, and in production what leaves a limit undeclared."""
    # Better than the base says nothing of good enough: a base may score next to nothing.
    if config.profile == "production" and config.evaluation.min_metric is None:
        raise UserError(
            "evaluation.min_metric is not set, and profile: production requires it; set the lowest "
            "metric on the hold-out that the task allows, as a share (for example `evaluation: "
            "{min_metric: 0.8}`)"
        )
    # One request at a time is no service: what many users wait for is seen under their load only.
    if config.profile == "production" and config.evaluation.load.rate is None:
        raise UserError(
            "evaluation.load is not set, and profile: production requires it; declare the load at "
            "the busiest time (for example `evaluation: {load: {users: 200}}`)"
        )
    return fit_inputs(config)


def fit_inputs(config: PipelineConfig) -> tuple[PipelineConfig, int]:
    """Refuse a dataset or base model that the run can't use, or an adapter that no engine loads.

    It runs before anything starts, so it checks only what this machine can see, and fetches no
    weights. fetch_base checks a base model that this machine can't see.

    Returns:
        The configuration with pods sized for the base model, and its parameters, 0 if it can't
        be seen from here.
    """
    from tuneline.models import check_address
    from tuneline.models.base_model import check_directory
    from tuneline.models.resolver import preview
    from tuneline.serving.engines.limits import parameters_of, refuse_unfit, refuse_unservable

    refuse_unservable(config.training, config.deployment)
    for addresses in (config.data.sources, config.data.holdouts):
        files = find_here(addresses)
        if len(files) == len(addresses) == 1 and files[0].local is not None:
            check_file(files[0].local, files[0].name)
    check_address(config.base_model)
    parameters = 0
    with preview(config.base_model) as seen:
        if seen is not None:
            stated = check_directory(*seen, f"base model {config.base_model!r}")
            parameters = parameters_of(stated, seen[1])
        config = config.model_copy(update={"pods": config.pods.for_model(parameters)})
        if seen is not None:
            refuse_unfit(*seen, config)
    return config, parameters


def safe_run_id(run_id: str, suffix: str = "") -> str:
    """Return the id of a run in the store, where the runs of all models lie side by side.

    Args:
        run_id: the id in Airflow, unique within a DAG; characters that paths or S3 keys can't
            hold are replaced.
        suffix: what it ends in, `Model.suffix`.
    """
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", run_id.removesuffix(suffix)).strip("-.")
    if not cleaned:
        raise UserError(f"run id {run_id!r} has no usable characters; use letters and digits")
    return cleaned + suffix


def new_run_id() -> str:
    """Return a run id made from the time."""
    return datetime.now(UTC).strftime("run-%Y%m%d-%H%M%S")
