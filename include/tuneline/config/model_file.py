"""Model files (`config/models/<name>.yaml`): what a team keeps in production, and when it works.

Each file gives a family of five DAGs. Its `settings` are a layer between the preset and the
trigger form, so whatever a run can be told stands here once.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from tuneline.config.deployment import DeploymentConfig
from tuneline.config.pipeline import (
    PipelineConfig,
    build_config,
    check_sections,
    explain,
    merge,
    presets_dir,
    read_yaml,
)
from tuneline.config.pods import PodConfig
from tuneline.config.section import Section, User
from tuneline.errors import UserError
from tuneline.machine.checkout import project_root


class CurationConfig(Section):
    """The curation of a day of production logs."""

    lookback_days: int = Field(7, ge=0)
    """Earlier curated days in which a question counts as seen before."""
    review_low_confidence: int = Field(50, ge=0)
    """Doubtful answers for review a day."""
    review_fallback: int = Field(50, ge=0)
    """Fallback answers for review a day."""
    review_novel: int = Field(50, ge=0)
    """Novel prompts for review a day."""
    review_random: int = Field(50, ge=0)
    """Other rows for review a day."""
    review_per_key: int = Field(10, ge=1)
    """Rows of one API key for review a day, at most. Raise it if all users share few keys."""
    # Of 100 held-out sample prompts none reaches it (greatest 0.35), of 164 general questions 155.
    novel_share: float = Field(0.4, gt=0, le=1)
    """Share of unknown 5-grams from which a prompt is novel."""
    min_logged_share: float = Field(0.9, ge=0, le=1)
    """Smallest share of the usage ledger's requests that a day's log may have, by its sampling;
    less where keys are kept out of the log, 0 checks nothing."""


_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_CRON_FIELDS = 5


def _cron(text: str) -> str:
    fields = text.split()
    if len(fields) != _CRON_FIELDS or not all(re.fullmatch(r"[\w*/,\-#]+", f) for f in fields):
        raise ValueError("expected a cron expression of five fields, e.g. `0 2 * * *`")
    return text


Cron = Annotated[str, AfterValidator(_cron)]


class LogsConfig(Section):
    """Production logs: when a day is curated."""

    schedule: Cron | None = "15 0 * * *"
    """Time (UTC) at which the day before is curated; null: by hand only."""


class DriftConfig(Section):
    """Drift watch: the days it covers, and when it starts a retraining."""

    window_days: int = Field(7, ge=1)
    """Days before the first drifted day that are backfilled too, at most."""
    cool_down_days: int = Field(7, ge=0)
    """Days after a retraining in which drift starts no other."""
    min_reviewed: int = Field(40, ge=0)
    """Reviewed rows of the drifted days that a retraining needs; with fewer, people are asked. Half
    of them are held out: of 20 rows they show in 58 % of the cases that a model with 90 % right is
    better than a release with 30 %, of 40 rows in 97 %."""
    review_hours: float = Field(72, gt=0)
    """The question for reviews stays open for this long."""
    retrain: bool = True
    """Start a retraining on drift; false only reports."""


class NightlyConfig(Section):
    """Nightly retraining."""

    schedule: Cron | None = None
    """Cron of the nightly run (UTC), e.g. `0 2 * * *`; null: by hand only."""
    warm_start: bool = False
    """Start from the released adapter, not from the base model."""
    hours: float = Field(24, gt=0)
    """The night's run is waited for this long."""


class NotifyConfig(Section):
    """The destinations of messages, and the events that are sent."""

    slack: str | None = None
    """Airflow connection of a Slack incoming webhook (type slackwebhook)."""
    email: list[str] = Field([])
    """Addresses; sent over Airflow's SMTP connection."""
    email_connection: str = "smtp_default"
    """Airflow connection of type smtp."""
    webhook: str | None = None
    """Airflow connection of type http; it gets a POST of one JSON object."""
    events: list[Literal["failure", "question", "drift", "release", "budget"]] = Field(
        ["failure", "question", "drift", "release", "budget"]
    )
    """Events that send a message."""


class BudgetConfig(Section):
    """The limit on the cost of automatic trainings."""

    training_per_month: float | None = Field(None, gt=0)
    """Cost of a calendar month's nightly and drift-started trainings, in governance.currency; when
    it is spent, none is started. null: no limit."""


class ModelFile(Section):
    """One model in production: its data, its people, its schedules."""

    description: str = ""
    """One line for the list of DAGs."""
    owners: list[str] = Field(["ml-platform"], min_length=1)
    """Owners of the DAGs."""
    tags: list[str] = Field([])
    """More tags of the DAGs."""
    access_control: dict[str, list[str] | dict[str, list[str]]] = Field({})
    """Rights of roles in the DAGs, for Airflow's FAB manager: `{support: [can_read, can_edit]}`, or
    by resource, `{support: {DAGs: [can_read], DAG Runs: [can_create]}}`."""
    approvers: list[User] = Field([])
    """Users who may answer its questions, each a name or `{id: 7, name: alice}`; empty: everyone
    who may edit its DAGs. Under profile: production none of them approves a run that they started,
    and a release of a run that no person started takes two of them."""
    preset: str = "laptop"
    """Preset that its runs start from."""
    settings: dict[str, Any] = Field({})
    """Settings of its runs, above the preset; data.source names its data."""
    logs: LogsConfig = LogsConfig()
    curation: CurationConfig = CurationConfig()
    drift: DriftConfig = DriftConfig()
    nightly: NightlyConfig = NightlyConfig()
    notify: NotifyConfig = NotifyConfig()
    budget: BudgetConfig = BudgetConfig()

    @model_validator(mode="after")
    def _backfills_need_a_schedule(self) -> ModelFile:
        if self.drift.retrain and self.logs.schedule is None:
            raise ValueError(
                "drift.retrain backfills days of production_logs, and Airflow backfills only DAGs "
                "with a schedule; set logs.schedule, or drift.retrain: false"
            )
        return self


@dataclass(frozen=True)
class Model:
    """A model that DAGs are made for.

    Attributes:
        name: the name that it is released under.
        suffix: end of the ids of its DAGs and runs, `__<name>`, so that they stay when other files
            come and go; empty for the model of a project without one.
        file_name: the name of its file; None for the model of a project without one.
        problem: why its file can't be used, one sentence; None if it can.
    """

    name: str
    suffix: str
    file: ModelFile
    file_name: str | None = None
    problem: str | None = None

    def config(self) -> PipelineConfig:
        """Return the configuration of a run that no one changed in the form."""
        where = f"{models_dir() / (self.file_name or self.name + '.yaml')}: settings"
        if not self.source:
            raise UserError(f"{where}: name the data (data: {{source: …}})")
        return build_config(self.settings, preset=self.file.preset, where=where)

    @property
    def settings_digest(self) -> str:
        """Hex SHA-256 of what that configuration sets; settings that are new change nothing."""
        stated = self.config().model_dump_json(exclude_defaults=True)
        return hashlib.sha256(stated.encode()).hexdigest()

    @property
    def pods(self) -> PodConfig:
        """The pods of what is done for the model outside of runs."""
        return PodConfig.model_validate(self.layers.get("pods") or {})

    @property
    def engine(self) -> str:
        """The engine that its runs have unless they are given another one."""
        default = DeploymentConfig.model_fields["engine"].default
        return str((self.layers.get("deployment") or {}).get("engine", default))

    @property
    def profile(self) -> str:
        """The profile that its runs have by its file and its preset."""
        return str(self.layers.get("profile", PipelineConfig.model_fields["profile"].default))

    @property
    def layers(self) -> dict[str, Any]:
        """The settings of its runs, those of its preset included."""
        return merge(read_yaml(presets_dir() / f"{self.file.preset}.yaml"), self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of its runs: those of its file and its name."""
        return merge(self.file.settings, {"name": self.name})

    @property
    def source(self) -> Any:
        """The dataset that its file names, None if it names none."""
        return (self.file.settings.get("data") or {}).get("source")


def models_dir() -> Path:
    """Return the folder of model files: `$TUNELINE_MODELS`, or `config/models` of the project."""
    return Path(os.environ.get("TUNELINE_MODELS") or project_root() / "config" / "models")


def models() -> list[Model]:
    """Return the models that DAGs are made for, by name.

    Without a file there is one model, of the default name and without schedules. A file that
    can't be used gives a model with a problem, so that it does not take the others down.
    """
    paths = sorted(models_dir().glob("*.yaml"))
    if not paths:
        # Airflow backfills only DAGs with a schedule.
        by_hand = ModelFile(logs=LogsConfig(schedule=None), drift=DriftConfig(retrain=False))
        return [Model(PipelineConfig.model_fields["name"].default, "", by_hand)]
    return [_read(path, path.stat().st_mtime_ns) for path in paths]


def find_model(name: str) -> Model:
    """Return a model by its name; one whose file can't be used is refused."""
    known = {model.name: model for model in models()}
    if name not in known:
        raise UserError(f"there is no model {name!r} in {models_dir()}; it has {', '.join(known)}")
    if known[name].problem:
        raise UserError(str(known[name].problem))
    return known[name]


def people_per_label(name: str) -> int:
    """Return how many people have to agree on a label of a model: two in production with approvers.

    One of an unknown model, and where a single approver is named or none.
    """
    found = (m for m in models() if m.name == name and m.profile == "production")
    return 2 if any(len(model.file.approvers) > 1 for model in found) else 1


@cache
def _read(path: Path, changed_at: int) -> Model:
    """Read a model's file; four DAG files ask for it in one parse, so it is kept until changed."""
    name = path.stem
    suffix = f"__{name}"
    try:
        made = Model(name, suffix, _validated(path), path.name)
        if made.source:
            made.config()
        return made
    except UserError as error:
        # Airflow allows fewer characters in an id than a file name has.
        safe = re.sub(r"[^A-Za-z0-9._-]", "-", suffix)
        return Model(name, safe, ModelFile(), path.name, str(error))


def _validated(path: Path) -> ModelFile:
    if not _NAME.fullmatch(path.stem):
        raise UserError(
            f"{path}: a model is named by its file, in lower-case letters, digits, `.`, `_`, `-`"
        )
    document = read_yaml(path)
    try:
        made = ModelFile.model_validate(document)
    except ValidationError as error:
        problems = "; ".join(explain(entry, ModelFile) for entry in error.errors())
        raise UserError(f"{path}: {problems}") from None
    check_sections(made.settings, f"{path}: settings")
    if made.settings.get("name", path.stem) != path.stem:
        raise UserError(f"{path}: settings.name: the file's name is the model's; leave it out")
    if not (presets_dir() / f"{made.preset}.yaml").is_file():
        raise UserError(f"{path}: preset: there is no preset {made.preset!r} in {presets_dir()}")
    return made
