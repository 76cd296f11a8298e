"""The sections of what the gateway records: its ledger, its logs and its traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from tuneline.config.addresses import HttpUrl
from tuneline.config.section import Section
from tuneline.serving.gateway.config_fields import EnvName, FilePath, Seconds
from tuneline.serving.gateway.users import KeptUser


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

    path: FilePath | None = Field(None, description="The SQLite file; made when missing.")
    url: Annotated[str, AfterValidator(_ledger_url)] | None = Field(
        None,
        description="A database in place of the file, `postgresql://user@host:5432/database`, "
        "which several gateways may share. A password comes from `PGPASSWORD` or `PGPASSFILE`.",
    )
    users: KeptUser = Field(
        "hash",
        description="What is kept of a request's `user`: its hash (`hash`), up to 64 characters of "
        "it (`plain`) or nothing (`none`).",
    )
    queue_limit: int = Field(
        10_000,
        ge=1,
        description="Rows that may wait to be written; beyond it new requests get 503, since "
        "what cannot be counted is not served.",
    )
    flush_interval_s: Seconds = Field(0.25, description="Time between two writes.")

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

    store: str = Field(
        description="Root of the store, `file:///dir` or `s3://bucket/prefix`; rows go to "
        "`logs/<model>/<day>/` below it."
    )
    spool: FilePath = Field(
        description="Folder of this gateway alone, for rows that the store does not have yet."
    )
    sample_rate: float = Field(
        1.0, ge=0, le=1, description="Share of the requests that is logged, drawn by request id."
    )
    languages: tuple[str, ...] = Field(
        ("en",),
        description="Languages of the conversations, in which personal data is looked for.",
    )
    pii_model: bool = Field(
        True,
        description="Find personal data by the model of `data.pii_ner: true` and by patterns; "
        "without its files the gateway does not start. false: patterns alone, which miss names.",
    )
    flush_interval_s: Seconds = Field(
        1.0, description="Time between two writes to the spool; a kill loses no more than that."
    )
    part_seconds: Seconds = Field(60.0, description="Age at which rows are uploaded.")
    part_rows: int = Field(
        5_000, ge=1, le=1_000_000, description="Number of rows that are uploaded sooner."
    )
    queue_limit: int = Field(
        10_000, ge=1, description="Requests that may wait for the spool; more are dropped."
    )
    queue_bytes: int = Field(
        64 << 20, ge=1, description="Bytes of requests and answers that may wait in memory."
    )
    spool_bytes: int = Field(
        1 << 30, ge=1, description="Bytes that the spool may hold; more are dropped."
    )


class TracingConfig(Section):
    """Traces of requests for an OpenTelemetry collector; none are made without this section."""

    endpoint: HttpUrl = Field(
        "http://127.0.0.1:4318/v1/traces", description="Where spans go, by OTLP over HTTP."
    )
    service_name: str = Field(
        "tuneline-gateway", min_length=1, description="Name of the service in the traces."
    )
    sample_rate: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the requests that is traced, where the client has not decided.",
    )
    headers_env: EnvName | None = Field(
        None, description="Environment variable that holds headers for it: `name=value,…`."
    )
