"""Files that the deployment phase leaves for other steps."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tuneline.artifacts.artifact import Artifact, Document, FileName, FolderArtifact


class Decision(BaseModel):
    """`decision.json` of adapter_merging: how the tuned model is served.

    Attributes:
        decision: `merge`, or `apart` for the base with the adapter beside it.
    """

    model_config = ConfigDict(extra="allow")

    decision: Literal["merge", "apart"]
    reason: str = ""


class BaseForm(BaseModel):
    """A base model in the form that an engine loads, with adapters beside it.

    Attributes:
        uri: address of the base model.
        digest: hash over the base model's own files.
        variant: `f16` or a quantisation.
        made_by: packages that made the form; None if it is the base model's own files.
        key: folder of the store that holds its files; None if they come from `uri`.
        sha256: hash of its one file, or of the list of its files' hashes.
        files: SHA-256 of each file by name.
    """

    model_config = ConfigDict(frozen=True)

    uri: str
    digest: str
    variant: str
    made_by: str | None = None
    key: FileName | None = None
    sha256: str
    files: dict[FileName, str]


class AdapterForm(BaseModel):
    """An adapter in the form that an engine loads.

    Attributes:
        sha256: hash of its one file, or of the list of its files' hashes.
        files: SHA-256 of each file by name.
    """

    model_config = ConfigDict(frozen=True)

    sha256: str
    files: dict[FileName, str]


class Apart(BaseModel):
    """The base and the adapter that ship if the adapter is not merged; others share the base."""

    model_config = ConfigDict(frozen=True)

    base: BaseForm
    adapter: AdapterForm


class Choice(BaseModel):
    """The variant that ships.

    Attributes:
        variant: its name, `f16` or a quantisation.
        engine: the engine that it was measured on, in whose form it is.
        sha256: hash of `model.gguf`, or of the list of a folder's hashes; with an adapter apart
            the hash of both, see `ServedModel`.
        bytes: size of its file or files, bytes.
        judged_on: ids of the validation rows that the variants were compared on.
        apart: the base and the adapter, if they are served unmerged.
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_: str = Field("tuneline/choice/1", alias="schema")
    variant: str
    engine: str = "llama_cpp"
    reason: str = ""
    sha256: str
    bytes: int = 0
    judged_on: list[str] = []
    apart: Apart | None = None


class EngineIdentity(BaseModel):
    """Everything that the shipping engine is tied to; each engine adds its own fields.

    Attributes:
        limits: the sizes it was built for or is started with.
        served: the sizes that its servers are started with; {} takes the limits.
        files: SHA-256 of each file that it loads, by name.
        apart: the base and the adapter, if they are served unmerged.
    """

    model_config = ConfigDict(extra="allow")

    engine: str
    version: str = ""
    limits: dict[str, Any] = {}
    served: dict[str, Any] = {}
    files: dict[str, str] = {}
    apart: Apart | None = None


class BuildReport(BaseModel):
    """The result of a build; `built` is false where the engine could not be built.

    Attributes:
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


class WarmUp(BaseModel):
    """`warm_up.json` of cold_start: what a served engine is warmed up with.

    Attributes:
        system: the system turn that most rows begin with; None if no turn is in most of them.
        share: share of the rows that begin with their most frequent system turn, 0 to 1.
        rows: number of training and validation rows.
    """

    schema_: str = Field("tuneline/warm_up/1", alias="schema")
    system: str | None
    share: float
    rows: int


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
