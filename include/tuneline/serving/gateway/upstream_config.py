"""The section of one upstream in the gateway's configuration."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from tuneline.config.addresses import HttpUrl, host_of, is_loopback
from tuneline.config.section import Section

_SECONDS_PER_HOUR = 3600.0
# The largest answer that is taken, unless an upstream's section sets another limit.
ANSWER_LIMIT = 64_000_000


def _from_files_folder(path: Path, info: ValidationInfo) -> Path:
    base = (info.context or {}).get("base")
    return Path(base, path.expanduser()) if base else path.expanduser()


def _env_set(name: str) -> str:
    if not os.environ.get(name):
        raise ValueError(f"the environment variable {name} is not set")
    return name


# Relative paths are taken from the configuration file's folder, wherever the gateway is started.
FilePath = Annotated[Path, AfterValidator(_from_files_folder)]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][\w.:@/+-]*$")]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
# Keys and other secrets are in the environment; the file only names the variable.
EnvName = Annotated[str, AfterValidator(_env_set)]


class BreakerConfig(Section):
    """When an upstream that keeps failing is left alone, and for how long."""

    failures: int = Field(5, ge=1, le=10_000)
    """Failures in a row that open the circuit."""
    error_share: float = Field(0.5, gt=0, le=1)
    """Share of failures within the window that opens it too."""
    window_s: float = Field(30.0, gt=0, le=3600)
    """Length of that window."""
    window_requests: int = Field(20, ge=2, le=100_000)
    """Attempts that the window must hold to be judged."""
    open_s: float = Field(10.0, gt=0, le=3600)
    """Time for which nothing is sent; then one request at a time tries it."""


class LowConfidenceConfig(Section):
    """The limits below which an answer is not trusted (natural logarithms; 0 is certainty)."""

    min_mean_logprob: float = Field(lt=0)
    """Fall back when the mean log-probability of the answer's tokens is below this. Calibrate it on
    validation rows."""
    min_token_logprob: float | None = Field(None, lt=0)
    """Fall back when the weakest token is below this."""
    stream_window_tokens: int = Field(0, ge=0, le=512)
    """Hold back this many first tokens of a stream and judge them; 0 leaves streams unjudged."""
    stream_min_mean_logprob: float | None = Field(None, lt=0)
    """The limit for the mean of the tokens that are held back; None takes `min_mean_logprob`. The
    first tokens are not as sure as all."""


@dataclass(frozen=True)
class TokenRates:
    """Cost of 1,000 prompt and 1,000 completion tokens, in the ledger's currency."""

    per_1k_prompt: float
    per_1k_completion: float

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the cost of one attempt, in the ledger's currency."""
        return (
            prompt_tokens * self.per_1k_prompt + completion_tokens * self.per_1k_completion
        ) / 1000.0


class PriceConfig(Section):
    """Either both prices per 1,000 tokens, or an hourly cost with a measured throughput."""

    per_1k_prompt: float | None = Field(None, ge=0)
    """Price of 1,000 prompt tokens."""
    per_1k_completion: float | None = Field(None, ge=0)
    """Price of 1,000 completion tokens."""
    hourly_cost: float | None = Field(None, ge=0)
    """What the upstream's machine costs in an hour."""
    completion_tokens_per_second: float | None = Field(None, gt=0)
    """Completion tokens that machine writes in a second under its usual load, as the latency
    benchmark measured it."""
    prompt_tokens_per_second: float | None = Field(None, gt=0)
    """Prompt tokens that machine reads in a second. Leave it out when the completion throughput was
    measured with prompts included: prompts are then free, since their time is already in the price
    of the completion."""

    @model_validator(mode="after")
    def _one_way(self) -> PriceConfig:
        listed = (self.per_1k_prompt, self.per_1k_completion)
        derived = (self.hourly_cost, self.completion_tokens_per_second)
        if None not in listed and derived == (None, None) and self.prompt_tokens_per_second is None:
            return self
        if None not in derived and listed == (None, None):
            return self
        raise ValueError(
            "give either per_1k_prompt and per_1k_completion, or hourly_cost and "
            "completion_tokens_per_second"
        )

    def rates(self) -> TokenRates:
        """Return the two rates, derived from the hourly cost where no price is listed."""
        if self.per_1k_prompt is not None and self.per_1k_completion is not None:
            return TokenRates(self.per_1k_prompt, self.per_1k_completion)
        assert self.hourly_cost is not None
        assert self.completion_tokens_per_second is not None
        per_second = self.hourly_cost / _SECONDS_PER_HOUR
        prompt = self.prompt_tokens_per_second
        return TokenRates(
            per_1k_prompt=1000.0 * per_second / prompt if prompt else 0.0,
            per_1k_completion=1000.0 * per_second / self.completion_tokens_per_second,
        )


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

    name: Name
    """Its name in chains, headers, ledger and metrics."""
    base_url: HttpUrl
    """Where its API begins, `/v1` included."""
    model: str = Field(min_length=1)
    """The model id it must list; it is what requests ask it for."""
    api_key_env: EnvName | None = None
    """Environment variable that holds its API key."""
    connect_timeout_s: Seconds = 2.0
    """Time to open a connection."""
    answer_timeout_s: Seconds = 300.0
    """Time for a whole answer that is not streamed."""
    first_token_timeout_s: Seconds = 60.0
    """Time to the first token of a stream."""
    idle_timeout_s: Seconds = 60.0
    """Longest time without text inside a stream that has begun."""
    stream_timeout_s: Seconds = 3600.0
    """Time for a whole stream."""
    max_answer_bytes: int = Field(ANSWER_LIMIT, ge=1_000)
    """Largest answer, streamed or not; a larger one is a failure of the upstream, and its
    connection is closed."""
    version: str | None = Field(None, min_length=1)
    """Version of the model that it serves, such as the release's run id; ledger, production log and
    `/v1/models` state it."""
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Hash of the weights that it has loaded, stated where `version` is. The follower writes what
    the start of its engine has hashed."""
    price: PriceConfig | None = None
    """What its tokens cost; without it they cost nothing."""
    tokenizer: FilePath | None = None
    """Its `tokenizer.json`, for counting where it reports no usage; without it four bytes count as
    one token."""
    adapter: Annotated[int, Field(ge=0)] | Name | None = None
    """Adapter that it is asked for: its name in vLLM, its place in llama.cpp, from 0. None asks
    `model` itself."""
    context_tokens: int | None = Field(None, ge=1)
    """Context of one request, prompt and answer, in tokens. A prompt that is too long for one
    upstream goes to those with a longer context, or that state none."""
    warmup_system: str | None = Field(None, min_length=1)
    """System turn that most of its prompts begin with. The warm-up and the pings carry it, so that
    the engine's prefix cache holds it when a user asks."""
    system: str | None = Field(None, min_length=1)
    """System turn of a conversation that has none. The follower writes that of a release all of
    whose rows share one."""
    defaults: Annotated[dict[str, Any], AfterValidator(_no_request_fields)] = Field({})
    """Fields of a request that does not name them, such as `temperature: 0`. The follower writes
    those that a release was measured with."""
    breaker: BreakerConfig = BreakerConfig()
    """When it is left alone because it keeps failing."""
    extra_body: Annotated[dict[str, Any], AfterValidator(_no_request_fields)] = Field({})
    """Fields set in every request to it, over the client's, such as `top_k: 40`."""
    fields: Annotated[tuple[str, ...], AfterValidator(_from_clients)] = (
        "ignore_eos",
        "min_p",
        "repetition_penalty",
        "top_k",
    )
    """Fields besides OpenAI's that it takes from clients. A request with a field that no upstream
    of its model takes gets 400."""
    ping: bool = True
    """Prove by a one-token answer that it lives. `false` only reads its list of models, for
    upstreams that bill every token."""

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
