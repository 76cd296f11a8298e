"""The pods section of the configuration: images, sizes and place of the pods of a run."""

from __future__ import annotations

import math
import os

from pydantic import Field

from tuneline.catalogue import Size
from tuneline.config.section import Section
from tuneline.machine.quantity import quantity

ML_IMAGE = "tuneline/ml:local"
# The memory of a pod whose model is small, and what is kept beyond a model's weights.
_FLOOR, _SLACK, _GIB = "8Gi", 1.2, 2**30
_PROCESS = 4 * _GIB
_QUANTITY = r"^[0-9.]+(e[0-9]+|[KMGTkm]i?)?$"


class PodSize(Section):
    """The pods of one class of steps; null takes the value of `pods`."""

    memory: str | None = Field(None, pattern=_QUANTITY)
    """Memory, requested and its limit."""
    cpu: str | None = Field(None, pattern=_QUANTITY)
    """CPUs, requested and their limit."""
    gpus: int | None = Field(None, ge=0)
    """GPUs of those of its steps that use GPUs."""
    image: str | None = None
    """Image, with or without a GPU."""


class PodConfig(Section):
    """The pods of a run."""

    # A run records what its Airflow is set up with.
    image: str = Field(default_factory=lambda: os.environ.get("TUNELINE_IMAGE") or ML_IMAGE)
    """Image of the steps; the default is that of `TUNELINE_IMAGE`, or tuneline/ml:local."""
    gpu_image: str = Field(
        default_factory=lambda fields: os.environ.get("TUNELINE_GPU_IMAGE") or fields["image"]
    )
    """Image of the steps with a GPU; the default is that of `TUNELINE_GPU_IMAGE`, or `image`."""
    engine_image: str | None = Field(
        default_factory=lambda: os.environ.get("TUNELINE_ENGINE_IMAGE") or None
    )
    """Image of the steps that start the engine; the default is that of `TUNELINE_ENGINE_IMAGE`, or
    the engine's own (tuneline/vllm:local, tuneline/tensorrt-llm:local), for llama_cpp `image`."""
    namespace: str | None = Field(
        default_factory=lambda: os.environ.get("TUNELINE_NAMESPACE") or None
    )
    """Namespace of the pods; the default is `TUNELINE_NAMESPACE`, or that of the connection
    kubernetes_default, or Airflow's own."""
    gpus: int = Field(0, ge=0)
    """GPUs of each training pod."""
    nodes: int = Field(1, ge=1)
    """Pods that train together, each on its own node if it has GPUs."""
    gpu_resource: str = Field("nvidia.com/gpu", pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")
    """Resource by which pods ask for GPUs: amd.com/gpu, nvidia.com/mig-3g.40gb."""
    memory: str | None = Field(None, pattern=_QUANTITY)
    """Memory of a step's pod, requested and its limit; null follows from the base model, for each
    class of steps (`tuneline estimate`)."""
    cpu: str = Field("2", pattern=_QUANTITY)
    """CPUs of a step's pod, requested and its limit."""
    sizes: dict[Size, PodSize] = Field({})
    """Settings of one class of steps (light, data, train, merge, engine), used in place of those
    above: `{train: {memory: 64Gi, cpu: "8"}}`."""
    queue: str | None = Field(None, pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    """LocalQueue of Kueue in which pods and jobs wait for their quota."""
    user: int = Field(50000, ge=1)
    """Numeric user that pods run as; the images of docker/ are made for 50000."""
    model_cache: str | None = None
    """PersistentVolumeClaim that holds base models and is mounted into every pod; null takes them
    from the store."""
    deadline_hours: float = Field(12, gt=0)
    """A pod is stopped after this long."""

    def of(self, size: Size) -> SizedPods:
        """Return the pods of one class of steps."""
        own = self.sizes.get(size, PodSize()).model_dump(exclude_none=True)
        if image := own.get("image"):
            own |= {"gpu_image": image, "engine_image": image}
        if not size.uses_gpus:
            own["gpus"] = 0
        kept = self.model_dump(exclude={"sizes"})
        return SizedPods.model_validate({**kept, "memory": self.memory or _FLOOR, **own})

    def for_model(self, parameters: int) -> PodConfig:
        """Return it with the memory that each class of steps needs for a base model.

        What is set stays. A model of unknown size counts as 0 parameters.
        """
        if self.memory is not None:
            return self
        sizes = {
            size: PodSize.model_validate(
                {"memory": memory, **self.sizes.get(size, PodSize()).model_dump(exclude_none=True)}
            )
            for size, memory in memory_of(parameters, gpus=self.of(Size.TRAIN).gpus).items()
        }
        return self.model_copy(update={"sizes": sizes})


class SizedPods(PodConfig):
    """The pods of one class of steps."""

    memory: str


def memory_of(parameters: int, *, gpus: int) -> dict[Size, str]:
    """Return the memory of a pod of each class, by the number of the base model's parameters.

    Merging, and comparing what was merged, holds the model in float32; without GPUs so do
    training and an engine's references. With GPUs a training pod reads the weights in half
    precision and keeps 4 GiB for each of its processes.
    """
    whole, half = _SLACK * 4 * parameters, _SLACK * 2 * parameters
    train = half + gpus * _PROCESS if gpus else whole + _PROCESS
    needed = {Size.DATA: 0.0, Size.TRAIN: train, Size.MERGE: whole, Size.ENGINE: whole}
    floor = quantity(_FLOOR)
    found = {size: math.ceil(max(floor, bytes_) / _GIB) for size, bytes_ in needed.items()}
    return {Size.LIGHT: "4Gi", **{size: f"{gib}Gi" for size, gib in found.items()}}
