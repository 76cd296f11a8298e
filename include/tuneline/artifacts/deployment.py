"""Files that the deployment phase leaves for other steps."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tuneline.artifacts.artifact import Artifact, Document, FileName, FolderArtifact


class Decision(BaseModel):
    """`decision.json` of adapter_merging: how the tuned model is served."""

    model_config = ConfigDict(extra="allow")

    decision: Literal["merge", "apart"]  # apart: the base with the adapter next to it
    reason: str = ""


class BaseForm(BaseModel):
    """A base model in the form that an engine loads, with adapters beside it."""

    model_config = ConfigDict(frozen=True)

    uri: str
    digest: str
    variant: str  # `f16` or a quantisation
    made_by: str | None = None  # packages that made the form; None for the base's own files
    key: FileName | None = None  # folder of the store; None if the files come from `uri`
    sha256: str  # of its one file, or of the list of its files' hashes
    files: dict[FileName, str]


class AdapterForm(BaseModel):
    """An adapter in the form that an engine loads."""

    model_config = ConfigDict(frozen=True)

    sha256: str  # of its one file, or of the list of its files' hashes
    files: dict[FileName, str]


class Apart(BaseModel):
    """The base and the adapter that ship if the adapter is not merged; others share the base."""

    model_config = ConfigDict(frozen=True)

    base: BaseForm
    adapter: AdapterForm


class Choice(BaseModel):
    """The variant that ships."""

    model_config = ConfigDict(populate_by_name=True)

    schema_: str = Field("tuneline/choice/1", alias="schema")
    variant: str  # `f16` or a quantisation
    engine: str = "llama_cpp"  # it was measured on this one
    reason: str = ""
    sha256: str  # of `model.gguf`, or of a folder's hashes; see `ServedModel`
    bytes: int = 0
    judged_on: list[str] = []  # ids of the validation rows
    apart: Apart | None = None


class EngineIdentity(BaseModel):
    """Everything that the shipping engine is tied to; each engine adds its own fields."""

    model_config = ConfigDict(extra="allow")

    engine: str
    version: str = ""
    limits: dict[str, Any] = {}  # the sizes it was built for or is started with
    served: dict[str, Any] = {}  # sizes that its servers are started with; {} takes the limits
    files: dict[str, str] = {}
    apart: Apart | None = None


class BuildReport(BaseModel):
    """The result of a build; `built` is false where the engine could not be built."""

    engine: str
    built: bool
    reason: str  # one sentence; the obstacle if it was not built
    commands: list[list[str]] = []  # also when they could not be run here
    identity: dict[str, Any] = {}  # fields of `EngineIdentity`; {} if it was not built
    seconds: float = 0.0


class WarmUp(BaseModel):
    """`warm_up.json` of cold_start: what a served engine is warmed up with."""

    schema_: str = Field("tuneline/warm_up/1", alias="schema")
    system: str | None  # None if no system turn is in most rows
    share: float  # of rows that begin with the most frequent system turn, 0 to 1
    rows: int  # of training and validation


# The unquantised variant, which the losses of the others are measured against.
REFERENCE = "f16"
DECISION = Document("adapter_merging", "decision.json", Decision)
# What llama.cpp loads.
MODEL = Artifact("production_quantization", "model.gguf")
# What engines of checkpoints load; the unquantised one stays where it was exported.
CHECKPOINT = FolderArtifact("production_quantization", "model")
CHOICE = Document("production_quantization", "choice.json", Choice)
ENGINE = FolderArtifact("build_engine", "engine")
ENGINE_IDENTITY = Document("build_engine", "identity.json", EngineIdentity)
# How it was made, and its first answer.
ENGINE_REPORT = Artifact("build_engine", "engine.json")
WARM_UP_FILE = "warm_up.json"
WARM_UP = Document("cold_start", WARM_UP_FILE, WarmUp)
# Exists only if the engine could not be built.
NOT_BUILT = Document("build_engine", "not_built.json", BuildReport)
