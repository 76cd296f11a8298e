"""The chain of models in service, as a run proves it and its release is served with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field, model_validator

from tuneline.config.addresses import HttpUrl, host_of, is_allowed, is_loopback
from tuneline.config.section import Section


class LargerModel(Section):
    """A larger model, or any OpenAI-compatible API: the last of the chain."""

    base_url: HttpUrl = Field(
        description="Where its API begins, `/v1` included; its host must be in `allowed_hosts`."
    )
    model: str = Field(min_length=1, description="The model id to ask for.")
    api_key_env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable of the gateway that holds the API's key.",
    )
    context_tokens: int | None = Field(
        None, ge=1, description="Its context in tokens; None if it is longer than any other."
    )
    per_1k_prompt: float = Field(0.0, ge=0, description="Price of 1,000 prompt tokens.")
    per_1k_completion: float = Field(0.0, ge=0, description="Price of 1,000 completion tokens.")


class FallbackConfig(Section):
    """What the release is served with: the larger model, the times, the confidence."""

    larger: LargerModel | None = Field(
        None,
        description="What answers when neither the release nor the one before does. Prompts of "
        "your users go there; null asks nobody.",
    )
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Hosts outside that prompts may be sent to."
    )
    budget_s: float = Field(
        120.0,
        gt=0,
        le=86_400,
        description="Time for a whole request over all attempts, in seconds; of a stream until "
        "its first byte.",
    )
    answer_timeout_s: float = Field(
        60.0, gt=0, le=86_400, description="Time for one model's whole answer, in seconds."
    )
    first_token_timeout_s: float = Field(
        15.0, gt=0, le=86_400, description="Time for a stream's first token, in seconds."
    )
    calibration_rows: int = Field(
        200, ge=1, description="Validation rows that the confidence threshold is set on, at most."
    )
    caught_share: float = Field(
        0.3,
        gt=0,
        le=1,
        description="Share of wrong answers that the threshold has to catch; below it none is set.",
    )
    false_alarm_share: float = Field(
        0.1, gt=0, lt=1, description="Share of right answers that it may send on: its cost."
    )
    stream_window_tokens: int = Field(
        16,
        ge=0,
        le=512,
        description="First tokens of a stream that are held back and judged; 0 judges no stream.",
    )

    @model_validator(mode="after")
    def _host_is_allowed(self) -> FallbackConfig:
        if self.larger is not None and not is_allowed(self.larger.base_url, self.allowed_hosts):
            raise ValueError(
                f"larger.base_url is at {host_of(self.larger.base_url)}, which allowed_hosts does "
                "not name: add it there if prompts may be sent to it"
            )
        return self

    def refusal(self, hosts: Iterable[str], keys: Mapping[str, str]) -> str | None:
        """Return why a host leaves the larger model out, None if it does not.

        Settings come with a release, so they do not decide where prompts and keys are sent.

        Args:
            hosts: hosts that its owner allows, besides loopback; see `is_allowed`.
            keys: variables that its owner allows as keys, by host.
        """
        if self.larger is None:
            return None
        url, key = self.larger.base_url, self.larger.api_key_env
        host = host_of(url)
        if not (is_loopback(url) or is_allowed(url, hosts, plain=False)):
            named = host if url.startswith("https") else f"http://{host}"
            return f"the larger model at {url} is left out: allowed_hosts does not list {named}"
        if key is not None and {k.lower(): v for k, v in keys.items()}.get(host) != key:
            return (
                f"the larger model at {url} is left out: upstream_keys does not list {key} for "
                f"{host}"
            )
        return None

    def price(self) -> dict[str, Any]:
        """Return the price of the larger model, as a gateway's configuration states it."""
        assert self.larger is not None
        prices = {
            "per_1k_prompt": self.larger.per_1k_prompt,
            "per_1k_completion": self.larger.per_1k_completion,
        }
        return prices if any(prices.values()) else {}
