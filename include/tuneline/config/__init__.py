"""`PipelineConfig`, the one source of parameters; its sections are named after the phases.

Precedence, lowest first: the defaults here, a preset (`config/presets/*.yaml`), the model's file,
YAML (`overrides`, `--config`), a field of the trigger form or an option of the command line.
"""

from __future__ import annotations

from tuneline.config.data import CsvMapping, DataConfig, SourceFormat, TargetFormat
from tuneline.config.deployment import DeploymentConfig
from tuneline.config.evaluation import EvaluationConfig
from tuneline.config.governance import GovernanceConfig, Waiver
from tuneline.config.model_file import CurationConfig, Model, ModelFile, find_model, models
from tuneline.config.pipeline import (
    PipelineConfig,
    build_config,
    check_sections,
    merge,
    parse_yaml,
    presets_dir,
    read_yaml,
    validate_config,
)
from tuneline.config.pods import PodConfig
from tuneline.config.policy import Looser, Policy, read_policy
from tuneline.config.section import User
from tuneline.config.training import TrainingConfig

__all__ = [
    "CsvMapping",
    "CurationConfig",
    "DataConfig",
    "DeploymentConfig",
    "EvaluationConfig",
    "GovernanceConfig",
    "Looser",
    "Model",
    "ModelFile",
    "PipelineConfig",
    "PodConfig",
    "Policy",
    "SourceFormat",
    "TargetFormat",
    "TrainingConfig",
    "User",
    "Waiver",
    "build_config",
    "check_sections",
    "find_model",
    "merge",
    "models",
    "parse_yaml",
    "presets_dir",
    "read_policy",
    "read_yaml",
    "validate_config",
]
