"""The deployment section of the configuration: variants that may ship, and the engine."""

from __future__ import annotations

import re
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, model_validator

from tuneline.config.section import Limit, Section

EngineName = Literal["llama_cpp", "vllm", "tensorrt_llm", "tensorrt_llm_pytorch"]
# Images of the steps that start an engine; llama.cpp is in the image of the other steps.
ENGINE_IMAGES = {
    "vllm": "tuneline/vllm:local",
    "tensorrt_llm": "tuneline/tensorrt-llm:local",
    "tensorrt_llm_pytorch": "tuneline/tensorrt-llm:local",
}
# The variants that each engine can be given; the first two are measured by default.
VARIANTS: dict[str, tuple[str, ...]] = {
    "llama_cpp": ("f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"),
    "vllm": ("f16", "w4a16"),
    "tensorrt_llm": ("f16", "fp8", "int4_awq", "int8_sq", "nvfp4"),
    "tensorrt_llm_pytorch": ("f16",),
}

# Plain HTTP needs `oci+http`, but for a registry on this machine.
_DESTINATION = re.compile(
    r"(?:(hf)|(oci(?:\+http)?))://([\w.-]{1,253}(?::\d{1,5})?)/"
    r"((?(1)[\w.-]|[\w./-]){1,254})(?:(?(1)@|:)([\w./-]{1,128}))?",
    re.ASCII,
)


class Destination(NamedTuple):
    """A place to which a release is pushed."""

    uri: str
    scheme: str  # hf, oci or oci+http
    owner: str  # of a repository on the hub; or the registry
    repository: str
    label: str  # branch on the hub, tag in a registry; empty for the usual one

    @classmethod
    def parse(cls, uri: str) -> Destination:
        """Take an address apart; ValueError if it is none."""
        match = _DESTINATION.fullmatch(uri)
        if match is None:
            raise ValueError(
                f"{uri!r}: write hf://org/name@branch or oci://registry/repository:tag, branch and "
                "tag if you like (oci+http:// for a registry without TLS)"
            )
        hub, registry, *parts = match.groups("")
        return cls(uri, hub or registry, *parts)


class DeploymentConfig(Section):
    """Settings of serving."""

    engine: EngineName = "llama_cpp"
    """Engine that ships."""
    target_hardware: str = "laptop-cpu"
    """Hardware of production; latency measured on other hardware can only warn. `laptop-cpu`,
    `server-cpu`, … for any CPU, which warns in production; `epyc-16core-cpu` for a model and its
    cores, words of a GPU's name (`nvidia-h100`), with a count `2x-nvidia-h100`."""
    variants: list[str] | None = Field(None, min_length=1)
    """Variants that are measured and may ship; null takes the first two of the engine. llama_cpp:
    f16, q8_0, q5_1, q5_0, q4_1, q4_0; vllm: f16, w4a16; tensorrt_llm: f16, fp8, int4_awq, int8_sq,
    nvfp4; tensorrt_llm_pytorch: f16."""
    max_metric_drop: Annotated[float, Limit("production_quantization", "lower")] = Field(
        0.05, gt=0, lt=1
    )
    """Largest loss of the task metric against f16, by the upper end of its 95 % interval."""
    max_kl: Annotated[float, Limit("production_quantization", "lower")] = Field(0.05, gt=0)
    """Largest mean KL divergence from f16, nats."""
    max_merge_loss: Annotated[float, Limit("adapter_merging", "lower")] = Field(0.05, gt=0)
    """After QLoRA: largest share of perplexity that the merged model may lose against the adapter
    on its 4-bit base, by the upper end of its 95 % interval."""
    quality_rows: int | None = Field(None, ge=4)
    """Validation rows on which variants are compared; null takes twice as many as show that a
    variant without a loss is within max_metric_drop. Also the rows on which the merged model is
    compared with an adapter of QLoRA, 64 by default."""
    parallel: int = Field(4, ge=1)
    """Requests the engine runs at once."""
    context_tokens: int = Field(1024, ge=64)
    """Context of one request, tokens."""
    max_lora_rank: int | None = Field(None, ge=1)
    """Rank that the engine's server is started for (--max-lora-rank of vLLM and TensorRT-LLM); null
    takes each engine's own limit."""
    multi_tenant: bool = False
    """Several adapters share one base: ship the adapter apart from the base, where the engine can
    load it and max_adapter_slowdown allows it."""
    max_adapter_slowdown: float = Field(0.5, gt=0, lt=1)
    """Largest loss of throughput by an adapter that is not merged, a share, with all slots taken;
    beyond it the adapter is merged."""
    push_to: Annotated[
        list[Annotated[str, AfterValidator(lambda uri: Destination.parse(uri).uri)]],
        Limit("lineage", "within"),
    ] = Field([])
    """Destinations of the released version: `hf://org/name@branch` (default branch `main`),
    `oci://registry/repository:tag` (default tag: the version)."""

    @property
    def measured_variants(self) -> tuple[str, ...]:
        """The variants that are measured and may ship."""
        return tuple(self.variants or VARIANTS[self.engine][:2])

    @model_validator(mode="after")
    def _variants_of_the_engine(self) -> Self:
        known = VARIANTS[self.engine]
        unknown = [name for name in self.variants or () if name not in known]
        if unknown:
            raise ValueError(
                f"variants: {self.engine} has no {', '.join(unknown)}; use {', '.join(known)}"
            )
        return self
