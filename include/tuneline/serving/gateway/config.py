"""The gateway's configuration file: every key, its meaning and its limits.

It holds no secret: API keys lie hashed in the keys file, the keys of upstreams in environment
variables that the file only names.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError, model_validator

from tuneline.config import read_yaml
from tuneline.config.addresses import HttpUrl, is_allowed
from tuneline.config.section import Section
from tuneline.errors import UserError
from tuneline.serving.gateway.upstream_config import (
    EnvName,
    FilePath,
    LowConfidenceConfig,
    Name,
    Seconds,
    UpstreamConfig,
)

# What the ledger keeps of the request's field `user`.
KeptUser: TypeAlias = Literal["hash", "plain", "none"]


class ClientLimits(Section):
    """What a client may send, and how long it may take."""

    connections: int = Field(4_096, ge=1)
    """Connections at once, as far as the process may open files; a new one closes an idle one."""
    header_bytes: int = Field(32_768, ge=1_024, le=1 << 20)
    """Largest request line with all headers."""
    header_timeout_s: Seconds = 10.0
    """Time for the request line and the headers, from the first byte on."""
    body_timeout_s: Seconds = 30.0
    """Time for the body."""
    idle_timeout_s: Seconds = 75.0
    """Time that a connection without a request is kept open."""
    write_timeout_s: Seconds = 60.0
    """Longest time that a client may stop reading its answer."""
    json_depth: int = Field(64, ge=8, le=512)
    """Largest nesting depth of lists and objects in a body."""
    json_values: int = Field(20_000, ge=100)
    """Lists, objects and fields that a body may have."""


class LogConfig(Section):
    """The gateway's own log, on stderr."""

    format: Literal["text", "json"] = "text"
    """`json` writes a JSON object a line, with the facts as fields."""


def _ledger_url(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("postgresql", "sqlite"):
        raise ValueError("must be a URL such as postgresql://user@host:5432/database")
    if parts.password or "password=" in parts.query:
        raise ValueError("must hold no password; set PGPASSWORD or PGPASSFILE instead")
    return url


class LedgerConfig(Section):
    """The usage ledger."""

    path: FilePath | None = None
    """The SQLite file; made when missing."""
    url: Annotated[str, AfterValidator(_ledger_url)] | None = None
    """A database in place of the file, `postgresql://user@host:5432/database`, which several
    gateways may share. A password comes from `PGPASSWORD` or `PGPASSFILE`."""
    users: KeptUser = "hash"
    """Form in which a request's `user` is stored: its hash (`hash`), up to 64 of its characters
    (`plain`), or not at all (`none`)."""
    queue_limit: int = Field(10_000, ge=1)
    """Rows that may wait to be written; beyond it new requests get 503, since what cannot be
    counted is not served."""
    flush_interval_s: Seconds = 0.25
    """Time between two writes."""

    @model_validator(mode="after")
    def _one_place(self) -> LedgerConfig:
        if (self.path is None) == (self.url is None):
            raise ValueError("give either path, a SQLite file, or url, a database")
        return self

    @property
    def place(self) -> Path | str:
        """The file or the URL."""
        place = self.path or self.url
        assert place is not None
        return place


class ProductionLogConfig(Section):
    """Scrubbed requests and answers, kept in the store; nothing is kept without this section."""

    store: str
    """Root of the store, `file:///dir` or `s3://bucket/prefix`; rows go to `logs/<model>/<day>/`
    below it."""
    spool: FilePath
    """Folder of this gateway alone, for rows that the store does not have yet."""
    sample_rate: float = Field(1.0, ge=0, le=1)
    """Share of the requests that is logged, drawn by request id."""
    languages: tuple[str, ...] = ("en",)
    """Languages of the conversations, in which personal data is looked for."""
    pii_model: bool = True
    """Find personal data by the model of `data.pii_ner: true` and by patterns; without its files
    the gateway does not start. false: patterns alone, which miss names."""
    flush_interval_s: Seconds = 1.0
    """Time between two writes to the spool; a kill loses no more than that."""
    part_seconds: Seconds = 60.0
    """Age at which rows are uploaded."""
    part_rows: int = Field(5_000, ge=1, le=1_000_000)
    """Number of rows that are uploaded sooner."""
    queue_limit: int = Field(10_000, ge=1)
    """Requests that may wait for the spool; more are dropped."""
    queue_bytes: int = Field(64 << 20, ge=1)
    """Bytes of requests and answers that may wait in memory."""
    spool_bytes: int = Field(1 << 30, ge=1)
    """Bytes that the spool may hold; more are dropped."""


class TracingConfig(Section):
    """Traces of requests for an OpenTelemetry collector; none are made without this section."""

    endpoint: HttpUrl = "http://127.0.0.1:4318/v1/traces"
    """Where spans go, by OTLP over HTTP."""
    service_name: str = Field("tuneline-gateway", min_length=1)
    """Name of the service in the traces."""
    sample_rate: float = Field(1.0, ge=0, le=1)
    """Share of the requests that is traced, where the client has not decided."""
    headers_env: EnvName | None = None
    """Environment variable that holds headers for it: `name=value,…`."""


class CanaryConfig(Section):
    """A candidate that answers a share of the keys, before the chain."""

    upstream: str = Field(min_length=1)
    """Name of the candidate's upstream."""
    share: float = Field(gt=0, lt=1)
    """Share of the keys, drawn by their names."""
    low_confidence: LowConfidenceConfig | None = None
    """When to fall back from its answers; None takes the model's limits."""


class ModelConfig(Section):
    """A model id that clients ask for, and the chain of upstreams behind it."""

    id: Name
    """What clients write as `model`."""
    chain: tuple[str, ...] = Field(min_length=1)
    """Names of upstreams: the primary, then the fallbacks in order."""
    low_confidence: LowConfidenceConfig | None = None
    """When to fall back from an answer that came."""
    budget_s: Seconds = 600.0
    """Time for a whole request over all attempts, of a stream until its first byte. An attempt gets
    at most what is left of it."""
    canary: CanaryConfig | None = None
    """A release on trial, next to the chain. The follower writes it."""
    released: str | None = Field(None, min_length=1)
    """Version that is released; readiness and metrics say while the primary is of another one. The
    follower writes it."""

    def limits_of(self, upstream: str) -> LowConfidenceConfig | None:
        """Return the limits of confidence of an upstream's answers, None if they have none."""
        own = self.canary.low_confidence if self.canary is not None else None
        is_candidate = self.canary is not None and self.canary.upstream == upstream
        return own if own is not None and is_candidate else self.low_confidence


class ReadinessConfig(Section):
    """The conditions under which `/v1/health/ready` answers 200."""

    require: Literal["any", "primary"] = "any"
    """Each model needs any upstream of its chain, or its primary. `any` keeps the gateway in
    service while a fallback answers."""
    ping_interval_s: Seconds = 5.0
    """Time between pings; skipped while real tokens flow, and at most a second while the upstream
    is not ready."""
    ping_timeout_s: Seconds = 5.0
    """Time for one ping."""
    stale_after_s: Seconds = 20.0
    """An upstream without a token for this long (at least an interval and a ping) is not ready. A
    refused connection counts at once."""
    warmup_prompt_words: tuple[Annotated[int, Field(ge=1, le=100_000)], ...] = (8, 128)
    """Lengths of the warm-up prompts; empty skips the warm-up."""
    warmup_timeout_s: Seconds = 120.0
    """Time for one warm-up prompt."""

    @property
    def stale_s(self) -> float:
        """The age of the last token from which an upstream is not ready, seconds."""
        # Between two pings of an idle upstream there is no newer token to be had.
        return max(self.stale_after_s, self.ping_interval_s + self.ping_timeout_s)


class DrainConfig(Section):
    """The time between SIGTERM and the end."""

    delay_s: float = Field(0.0, ge=0, le=3600)
    """Go on serving this long while the probe already says 503, so that load balancers can
    notice."""
    timeout_s: Seconds = 30.0
    """Then finish requests under way for at most this long."""


class GatewayConfig(Section):
    """The whole file."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8000, ge=0, le=65_535)
    """Port; 0 takes a free one."""
    keys_file: FilePath
    """JSON file of API key names and hashes."""
    ledger: LedgerConfig
    """The usage ledger."""
    currency: str = Field("USD", pattern=r"^[A-Z]{3}$")
    """Currency of all prices (ISO 4217)."""
    upstreams: tuple[UpstreamConfig, ...]
    """Who can answer; `[]` before a first release."""
    allowed_hosts: tuple[str, ...] | None = None
    """Hosts that upstreams may be called at, besides this machine's loopback; None allows those
    that `upstreams` names. A larger model that a release names has to be at one of them, by https
    unless the host is listed as `http://host`."""
    upstream_keys: dict[str, str] = Field({})
    """Environment variables that a larger model which a release names may be sent as its key, by
    host."""
    models: tuple[ModelConfig, ...]
    """What clients can ask for; `[]` before a first release."""
    readiness: ReadinessConfig = ReadinessConfig()
    """When the gateway is ready."""
    drain: DrainConfig = DrainConfig()
    """How it stops."""
    production_log: ProductionLogConfig | None = None
    """Scrubbed requests in the store, one partition a day."""
    max_body_bytes: int = Field(1_000_000, ge=1_000)
    """Largest request body; more gets 413."""
    limits: ClientLimits = ClientLimits()
    """What a client may send, and how long it may take."""
    log: LogConfig = LogConfig()
    """The gateway's own log."""
    tracing: TracingConfig | None = None
    """OpenTelemetry traces."""
    chat_page: bool = True
    """Whether `/` answers with a page to chat on."""
    max_in_flight: int = Field(256, ge=1)
    """Requests at once; more get 429 with Retry-After."""
    max_in_flight_bytes: int = Field(256 << 20, ge=1 << 20)
    """Memory of all of them, in bytes; more get 429 too."""

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
                raise ValueError(f"the canary of model {model.id} must be a separate upstream")
            if model.low_confidence and len(model.chain) == 1:
                raise ValueError(
                    f"model {model.id} has low_confidence but no upstream to fall back to"
                )
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


def fingerprint(path: Path) -> str:
    """Return what identifies the content of a configuration file, 16 hex digits; "" without one."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return ""


def check_config(document: Any, path: Path, base: Path) -> GatewayConfig:
    """Check the content of a configuration file, whose relative paths are taken from a folder.

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
