"""The deployment section of the configuration: variants that may ship, and the engine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tuneline.config.section import Section


class DeploymentConfig(Section):
    """Settings of serving."""

    engine: Literal["llama_cpp", "vllm", "tensorrt_llm", "tensorrt_llm_pytorch"] = Field(
        "llama_cpp", description="Engine that ships."
    )
    target_hardware: str = Field(
        "laptop-cpu", description="Hardware of production; the latency item compares it."
    )
    variants: list[Literal["f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]] = Field(
        ["f16", "q8_0"], min_length=1, description="Variants that are measured and may ship."
    )
    max_metric_drop: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Largest loss of the task metric against f16; None takes 2 × its noise.",
    )
    max_kl: float = Field(0.05, gt=0, description="Largest mean KL divergence from f16, nats.")
    quality_rows: int = Field(
        24, ge=4, description="Validation rows on which variants are compared."
    )
    parallel: int = Field(4, ge=1, description="Requests the engine runs at once.")
    context_tokens: int = Field(1024, ge=64, description="Context of one request, tokens.")
    max_lora_rank: int | None = Field(
        None,
        ge=1,
        description="Rank that the engine's server is started for (--max-lora-rank of vLLM and "
        "TensorRT-LLM); None takes each engine's own limit.",
    )
    multi_tenant: bool = Field(
        False, description="Several adapters share one base: keep adapters apart."
    )
