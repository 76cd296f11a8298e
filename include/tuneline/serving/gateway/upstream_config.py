"""The section of one upstream in the gateway's configuration."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from tuneline.config.addresses import HttpUrl, host_of, is_loopback
from tuneline.config.section import Section
from tuneline.serving.gateway.config_fields import EnvName, FilePath, Name, Seconds
from tuneline.serving.gateway.fallback_config import BreakerConfig
from tuneline.serving.gateway.http_answer import ANSWER_LIMIT
from tuneline.serving.gateway.prices import PriceConfig


def _no_request_fields(body: dict[str, Any]) -> dict[str, Any]:
    if taken := {"model", "messages", "stream", "stream_options"} & body.keys():
        raise ValueError(f"the gateway sets {', '.join(sorted(taken))} itself")
    return body


# Engine fields that choose an adapter, a cache slot or another server's memory. The gateway sets
# them; otherwise one tenant could ask for another's adapter.
_NOT_FROM_CLIENTS = {"lora", "lora_request", "lora_path", "id_slot", "kv_transfer_params"}


def _from_clients(names: tuple[str, ...]) -> tuple[str, ...]:
    if taken := _NOT_FROM_CLIENTS.intersection(names):
        raise ValueError(f"the gateway alone sets {', '.join(sorted(taken))}; use adapter")
    return names


class UpstreamConfig(Section):
    """An OpenAI-compatible server."""

    name: Name = Field(description="Its name in chains, headers, ledger and metrics.")
    base_url: HttpUrl = Field(description="Where its API begins, `/v1` included.")
    model: str = Field(
        min_length=1, description="The model id it must list; it is what requests ask it for."
    )
    api_key_env: EnvName | None = Field(
        None, description="Environment variable that holds its API key."
    )
    connect_timeout_s: Seconds = Field(2.0, description="Time to open a connection.")
    answer_timeout_s: Seconds = Field(
        300.0, description="Time for a whole answer that is not streamed."
    )
    first_token_timeout_s: Seconds = Field(60.0, description="Time to the first token of a stream.")
    idle_timeout_s: Seconds = Field(
        60.0, description="Longest time without text inside a stream that has begun."
    )
    stream_timeout_s: Seconds = Field(3600.0, description="Time for a whole stream.")
    max_answer_bytes: int = Field(
        ANSWER_LIMIT,
        ge=1_000,
        description="Largest answer, streamed or not; a larger one is a failure of the upstream, "
        "and its connection is closed.",
    )
    version: str | None = Field(
        None,
        min_length=1,
        description="Version of the model that it serves, such as the release's run id; the "
        "production log states it.",
    )
    price: PriceConfig | None = Field(
        None, description="What its tokens cost; without it they cost nothing."
    )
    tokenizer: FilePath | None = Field(
        None,
        description="Its `tokenizer.json`, for counting where it reports no usage; without it "
        "four bytes count as one token.",
    )
    adapter: Annotated[int, Field(ge=0)] | Name | None = Field(
        None,
        description="Adapter that it is asked for: its name in vLLM, its place in llama.cpp, from "
        "0. None asks `model` itself.",
    )
    context_tokens: int | None = Field(
        None,
        ge=1,
        description="Context of one request, prompt and answer, in tokens. A prompt that is too "
        "long for one upstream goes to those with a longer context, or that state none.",
    )
    warmup_system: str | None = Field(
        None,
        min_length=1,
        description="System turn that most of its prompts begin with. The warm-up and the pings "
        "carry it, so that the engine's prefix cache holds it when a user asks.",
    )
    breaker: BreakerConfig = Field(
        BreakerConfig(), description="When it is left alone because it keeps failing."
    )
    extra_body: Annotated[dict[str, Any], AfterValidator(_no_request_fields)] = Field(
        {},
        description="Fields set in every request to it, over the client's, such as `top_k: 40`.",
    )
    fields: Annotated[tuple[str, ...], AfterValidator(_from_clients)] = Field(
        ("ignore_eos", "min_p", "repetition_penalty", "top_k"),
        description="Fields besides OpenAI's that it takes from clients. A request with a field "
        "that no upstream of its model takes gets 400.",
    )
    ping: bool = Field(
        True,
        description="Prove by a one-token answer that it lives. `false` only reads its list of "
        "models, for upstreams that bill every token.",
    )

    @model_validator(mode="after")
    def _one_adapter(self) -> UpstreamConfig:
        if self.adapter is not None and "lora" in self.extra_body:
            raise ValueError("adapter and extra_body.lora both choose an adapter; keep adapter")
        return self

    @property
    def host(self) -> str:
        """The host that it is called at."""
        return host_of(self.base_url)

    @property
    def is_local(self) -> bool:
        """Whether it is called over this machine's loopback."""
        return is_loopback(self.base_url)

    @property
    def asked_model(self) -> str:
        """The model id that requests ask it for, and that it must list."""
        return self.adapter if isinstance(self.adapter, str) else self.model
