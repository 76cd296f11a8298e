"""What the training phase leaves."""

from __future__ import annotations

from tuneline.artifacts.artifact import Artifact, FolderArtifact

LORA = Artifact("lora_selection", "lora.json")
PLAN = Artifact("gradient_accumulation", "plan.json")
HISTORY = Artifact("train", "history.jsonl")
TRAINED = Artifact("train", "run.json")
CHECKPOINTS = Artifact("train", "checkpoints.json")
ADAPTER = FolderArtifact("train", "adapter")
MERGED = FolderArtifact("export_candidate", "merged")
CANDIDATE_GGUF = Artifact("export_candidate", "candidate.gguf")
ADAPTER_GGUF = Artifact("export_candidate", "adapter.gguf")
