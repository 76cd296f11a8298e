"""Files that the deployment phase leaves for other steps."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tuneline.artifacts.artifact import Artifact, Document, FolderArtifact


class Choice(BaseModel):
    """The variant that ships.

    Attributes:
        schema_: the document's format.
        variant: its name, `f16` or a quantisation.
        reason: one sentence.
        sha256: hash of `model.gguf`.
        bytes: size of `model.gguf`, bytes.
        judged_on: ids of the validation rows that the variants were compared on.
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_: str = Field("tuneline/choice/1", alias="schema")
    variant: str
    reason: str = ""
    sha256: str
    bytes: int = 0
    judged_on: list[str] = []


class EngineIdentity(BaseModel):
    """Everything that the shipping engine is tied to; each engine adds its own fields.

    Attributes:
        engine: the engine's name.
        version: its package and version.
        limits: the sizes it was built for or is started with.
        files: SHA-256 of each file that it loads, by name.
    """

    model_config = ConfigDict(extra="allow")

    engine: str
    version: str = ""
    limits: dict[str, Any] = {}
    files: dict[str, str] = {}


class BuildReport(BaseModel):
    """The result of a build; `built` is false where the engine could not be built.

    Attributes:
        engine: the engine's name.
        built: whether there are files that the engine can load.
        reason: one sentence; the obstacle if it was not built.
        commands: the exact command lines, also when they could not be run here.
        identity: the fields of `EngineIdentity`; {} if it was not built.
        seconds: wall-clock time of the build, in seconds.
    """

    engine: str
    built: bool
    reason: str
    commands: list[list[str]] = []
    identity: dict[str, Any] = {}
    seconds: float = 0.0


MODEL = Artifact("production_quantization", "model.gguf")
CHOICE = Document("production_quantization", "choice.json", Choice)
ENGINE = FolderArtifact("build_engine", "engine")
ENGINE_IDENTITY = Document("build_engine", "identity.json", EngineIdentity)
# Exists only if the engine could not be built.
NOT_BUILT = Document("build_engine", "not_built.json", BuildReport)
