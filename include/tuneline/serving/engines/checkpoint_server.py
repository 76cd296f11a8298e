"""Engines that serve Hugging Face checkpoints as they are: nothing is built, only identified."""

from __future__ import annotations

from typing import Any, ClassVar

from tuneline.errors import UserError
from tuneline.serving.engines.base import (
    BuildReport,
    BuildRequest,
    Compatibility,
    Engine,
    ModelFacts,
)
from tuneline.serving.engines.identity import hash_tree, machine_identity
from tuneline.serving.engines.registry import check_architecture


class CheckpointServer(Engine):
    """What these engines share; each adds its command line.

    Attributes:
        title: The engine's name in sentences.
        wanted: The checkpoint to give it where a quantised one is wanted.
    """

    title: ClassVar[str]
    wanted: ClassVar[str] = "a quantised checkpoint"

    def check(self, model: ModelFacts) -> Compatibility:
        """Ask the engine's own registry of architectures, or the table."""
        return check_architecture(self.name, model)

    def build(self, request: BuildRequest) -> BuildReport:
        """Nothing to build: the checkpoint itself is identified.

        Raises:
            UserError: A quantisation is asked for; these engines take quantised checkpoints.
        """
        if request.quantization is not None:
            raise UserError(
                f"{self.title} does not quantise ({request.quantization}); give it {self.wanted}"
            )
        identity = {
            "engine": self.name,
            **self.details(request),
            **machine_identity(),
            "files": hash_tree(request.model_dir),
        }
        return BuildReport(self.name, True, "it serves the checkpoint itself", (), identity)

    def details(self, request: BuildRequest) -> dict[str, Any]:
        """What the checkpoint's identity holds besides its files and the machine."""
        return {}
