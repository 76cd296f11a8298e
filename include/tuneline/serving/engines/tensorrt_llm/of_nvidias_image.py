"""The properties that both backends of TensorRT-LLM have, since both run in NVIDIA's image."""

from __future__ import annotations

from typing import ClassVar

from tuneline.serving.engines.base import Engine
from tuneline.serving.engines.tensorrt_llm.commands import PYTHON
from tuneline.serving.engines.tensorrt_llm.identity import installed_versions


class OfNvidiasImage(Engine):
    """An engine of TensorRT-LLM: it runs on GPUs alone and is given merged models alone."""

    serves_adapters: ClassVar[bool] = False

    def interpreter(self) -> str | None:
        """Return NVIDIA's Python."""
        return PYTHON

    def version(self) -> str:
        """Return the version of TensorRT-LLM in this image."""
        return f"tensorrt_llm {installed_versions()['tensorrt_llm'] or 'not installed here'}"

    def on_gpu(self) -> bool:
        """Return True where it can be started: it runs on nothing else."""
        return self.missing() is None
