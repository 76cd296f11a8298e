"""The gateway's configuration file: every key, its meaning and its limits.

It holds no secret: API keys lie hashed in the keys file, the keys of upstreams in environment
variables that the file only names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from tuneline.config import read_yaml
from tuneline.config.addresses import is_allowed
from tuneline.config.section import Section
from tuneline.errors import UserError
from tuneline.serving.gateway.config_fields import FilePath, Name, Seconds
from tuneline.serving.gateway.fallback_config import LowConfidenceConfig
from tuneline.serving.gateway.limits import LimitsConfig
from tuneline.serving.gateway.record_config import LedgerConfig, ProductionLogConfig, TracingConfig
from tuneline.serving.gateway.structured_log import LogConfig
from tuneline.serving.gateway.upstream_config import UpstreamConfig


class CanaryConfig(Section):
    """A candidate that answers a share of the keys, before the chain."""

    upstream: str = Field(min_length=1, description="Name of the candidate's upstream.")
    share: float = Field(gt=0, lt=1, description="Share of the keys, drawn by their names.")
    low_confidence: LowConfidenceConfig | None = Field(
        None, description="When to fall back from its answers; None takes the model's limits."
    )


class ModelConfig(Section):
    """A model id that clients ask for, and the chain of upstreams behind it."""

    id: Name = Field(description="What clients write as `model`.")
    chain: tuple[str, ...] = Field(
        min_length=1, description="Names of upstreams: the primary, then the fallbacks in order."
    )
    low_confidence: LowConfidenceConfig | None = Field(
        None, description="When to fall back from an answer that came."
    )
    budget_s: Seconds = Field(
        600.0,
        description="Time for a whole request over all attempts, of a stream until its first "
        "byte. An attempt gets at most what is left of it.",
    )
    canary: CanaryConfig | None = Field(
        None, description="A candidate beside the chain. The follower writes it."
    )
    released: str | None = Field(
        None,
        min_length=1,
        description="Version that is released; readiness and metrics say while the primary is of "
        "another one. The follower writes it.",
    )

    def limits_of(self, upstream: str) -> LowConfidenceConfig | None:
        """Return the limits of confidence of an upstream's answers, None if they have none."""
        own = self.canary.low_confidence if self.canary is not None else None
        is_candidate = self.canary is not None and self.canary.upstream == upstream
        return own if own is not None and is_candidate else self.low_confidence


class ReadinessConfig(Section):
    """The conditions under which `/v1/health/ready` answers 200."""

    require: Literal["any", "primary"] = Field(
        "any",
        description="Each model needs any upstream of its chain, or its primary. `any` keeps the "
        "gateway in service while a fallback answers.",
    )
    ping_interval_s: Seconds = Field(
        5.0,
        description="Time between pings; skipped while real tokens flow, and at most a "
        "second while the upstream is not ready.",
    )
    ping_timeout_s: Seconds = Field(5.0, description="Time for one ping.")
    stale_after_s: Seconds = Field(
        20.0,
        description="An upstream without a token for this long (at least an interval and a ping) "
        "is not ready. A refused connection counts at once.",
    )
    warmup_prompt_words: tuple[Annotated[int, Field(ge=1, le=100_000)], ...] = Field(
        (8, 128), description="Lengths of the warm-up prompts; empty skips the warm-up."
    )
    warmup_timeout_s: Seconds = Field(120.0, description="Time for one warm-up prompt.")

    @property
    def stale_s(self) -> float:
        """The age of the last token from which an upstream is not ready, seconds."""
        # Between two pings of an idle upstream there is no newer token to be had.
        return max(self.stale_after_s, self.ping_interval_s + self.ping_timeout_s)


class DrainConfig(Section):
    """The time between SIGTERM and the end."""

    delay_s: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="Go on serving this long while the probe already says 503, so that load "
        "balancers can notice.",
    )
    timeout_s: Seconds = Field(
        30.0, description="Then finish requests under way for at most this long."
    )


class GatewayConfig(Section):
    """The whole file."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65_535, description="Port; 0 takes a free one.")
    keys_file: FilePath = Field(description="JSON file of API key names and hashes.")
    ledger: LedgerConfig = Field(description="The usage ledger.")
    currency: str = Field(
        "USD", pattern=r"^[A-Z]{3}$", description="Currency of all prices (ISO 4217)."
    )
    upstreams: tuple[UpstreamConfig, ...] = Field(
        description="Who can answer; `[]` before a first release."
    )
    allowed_hosts: tuple[str, ...] | None = Field(
        None,
        description="Hosts that upstreams may be called at, besides this machine's loopback; None "
        "allows those that `upstreams` names. A larger model that a release names has to be at one "
        "of them, by https unless the host is listed as `http://host`.",
    )
    upstream_keys: dict[str, str] = Field(
        {},
        description="Environment variables that a larger model which a release names may be sent "
        "as its key, by host.",
    )
    models: tuple[ModelConfig, ...] = Field(
        description="What clients can ask for; `[]` before a first release."
    )
    readiness: ReadinessConfig = Field(ReadinessConfig(), description="When the gateway is ready.")
    drain: DrainConfig = Field(DrainConfig(), description="How it stops.")
    production_log: ProductionLogConfig | None = Field(
        None, description="Scrubbed requests in the store, one partition a day."
    )
    max_body_bytes: int = Field(
        1_000_000, ge=1_000, description="Largest request body; more gets 413."
    )
    limits: LimitsConfig = Field(
        LimitsConfig(), description="What a client may send, and how long it may take."
    )
    log: LogConfig = Field(LogConfig(), description="The gateway's own log.")
    tracing: TracingConfig | None = Field(None, description="OpenTelemetry traces.")
    chat_page: bool = Field(True, description="Whether `/` answers with a page to chat on.")
    max_in_flight: int = Field(
        256, ge=1, description="Requests at once; more get 429 with Retry-After."
    )
    max_in_flight_bytes: int = Field(
        256 << 20,
        ge=1 << 20,
        description="Memory of all of them, in bytes; more get 429 too.",
    )

    @model_validator(mode="after")
    def _names_fit(self) -> GatewayConfig:
        upstreams = [upstream.name for upstream in self.upstreams]
        _unique("upstream", upstreams)
        _unique("model", [model.id for model in self.models])
        for upstream in self.upstreams:
            if self.allowed_hosts is not None and not upstream.is_local:
                _require_allowed(upstream, self.allowed_hosts)
        for model in self.models:
            _unique(f"upstream in the chain of {model.id}", list(model.chain))
            for name in model.chain:
                if name not in upstreams:
                    raise ValueError(f"the chain of model {model.id} names no upstream: {name}")
            candidate = model.canary.upstream if model.canary else None
            if candidate is not None and (candidate in model.chain or candidate not in upstreams):
                raise ValueError(f"the canary of model {model.id} must be an upstream of its own")
            if model.low_confidence and len(model.chain) == 1:
                raise ValueError(f"model {model.id} has low_confidence but nobody to fall back to")
        return self


def _require_allowed(upstream: UpstreamConfig, hosts: tuple[str, ...]) -> None:
    if not is_allowed(upstream.base_url, hosts):
        raise ValueError(
            f"upstream {upstream.name} is called at {upstream.host}, which allowed_hosts does not "
            "name; add the host there, or remove the upstream"
        )


def _unique(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two entries have the same {what}: {name}")


def load_config(path: Path) -> GatewayConfig:
    """Read and check a configuration file (YAML; JSON is YAML too).

    Relative paths in it are taken from the file's own folder.

    Raises:
        UserError: if it cannot be read, is not a YAML mapping, or a field is wrong or unknown.
    """
    return check_config(read_yaml(path), path, path.resolve().parent)


def check_config(document: Any, path: Path, base: Path) -> GatewayConfig:
    """Check the content of a configuration file.

    Args:
        document: the content.
        path: the file, for errors.
        base: folder that relative paths are taken from.

    Raises:
        UserError: if a field is wrong or unknown.
    """
    try:
        return GatewayConfig.model_validate(document, context={"base": base})
    except ValidationError as error:
        # Values are left out: one may be a secret.
        problems = error.errors(include_input=False, include_url=False)
        raise UserError(f"{path}: {'; '.join(map(_explain, problems))}") from None


def _explain(problem: Any) -> str:
    field = ""
    for part in problem["loc"]:
        field += f"[{part}]" if isinstance(part, int) else f".{part}" if field else str(part)
    if field == "request_log":
        return (
            "`request_log` is gone; use `production_log`, in a store `file:///dir` on this machine"
        )
    if problem["type"] == "extra_forbidden":
        return f"`{field}`: unknown key; docs/gateway.md lists the known ones"
    why = problem["msg"].removeprefix("Value error, ")
    return f"`{field}`: {why}" if field else why
