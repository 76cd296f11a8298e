"""What the deployment phase leaves."""

from __future__ import annotations

from tuneline.artifacts.artifact import Artifact

MODEL = Artifact("production_quantization", "model.gguf")
CHOICE = Artifact("production_quantization", "choice.json")
ENGINE_IDENTITY = Artifact("build_engine", "identity.json")
