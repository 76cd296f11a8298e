"""The governance section: use, prices, drift, and failures that are accepted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tuneline.config.addresses import HttpUrl, host_of, is_allowed, is_loopback
from tuneline.config.section import Limit, Section


class ReleaseCanaryConfig(Section):
    """The canary of a release; the follower that serves it takes these from the release."""

    share: float = Field(0.0, ge=0, lt=1)
    """Share of the keys that the release answers first, next to the version before it, until a rule
    promotes or withdraws it (0.1). 0 asks for no canary and leaves it to the follower's
    `--canary`."""
    hours: float = Field(24.0, gt=0, le=168)
    """A canary that is not decided after this many hours is withdrawn."""
    begin_hours: float = Field(1.0, gt=0, le=24)
    """A follower has to begin it within this many hours after the release, or the task `canary` of
    the run fails. Loading the model counts."""


class LargerModel(Section):
    """A larger model, or any OpenAI-compatible API: the last of the chain."""

    base_url: HttpUrl
    """Base address of its API, `/v1` included; its host must be in `allowed_hosts`."""
    model: str = Field(min_length=1)
    """The model id to ask for."""
    api_key_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable of the gateway that holds the API's key."""
    license: str | None = None
    """Licence of the model, or the service whose terms bind its answers (`openai`, `anthropic`,
    `google-api`): license_audit judges it once answers of its that people accepted are trained on.
    null asks a person."""
    context_tokens: int | None = Field(None, ge=1)
    """Its context in tokens; None if it is longer than any other."""
    per_1k_prompt: float = Field(0.0, ge=0)
    """Price of 1,000 prompt tokens."""
    per_1k_completion: float = Field(0.0, ge=0)
    """Price of 1,000 completion tokens."""


class FallbackConfig(Section):
    """The larger model behind the release, the times of a request, and the confidence."""

    larger: LargerModel | None = None
    """Model that answers when neither the release nor the one before does. Prompts of your users go
    there; null for none."""
    allowed_hosts: tuple[str, ...] = ()
    """Hosts outside that prompts may be sent to."""
    budget_s: float = Field(120.0, gt=0, le=86_400)
    """Time for a whole request over all attempts, in seconds; of a stream until its first byte."""
    answer_timeout_s: float = Field(60.0, gt=0, le=86_400)
    """Time for one model's whole answer, in seconds."""
    first_token_timeout_s: float = Field(15.0, gt=0, le=86_400)
    """Time for a stream's first token, in seconds."""
    calibration_rows: int = Field(200, ge=1)
    """Validation rows that the confidence threshold is set on, at most."""
    caught_share: float = Field(0.3, gt=0, le=1)
    """Share of wrong answers that the threshold has to catch; below it none is set."""
    false_alarm_share: float = Field(0.1, gt=0, lt=1)
    """Share of right answers that it may send on: its cost."""
    stream_window_tokens: int = Field(16, ge=0, le=512)
    """First tokens of a stream that are held back and judged; 0 judges no stream."""

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

        Settings come with a release, so they do not decide where prompts and keys are sent: its
        owner lists the hosts, besides loopback, and the variables allowed as keys.
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
        prices = self.larger.model_dump(include={"per_1k_prompt", "per_1k_completion"})
        return prices if any(prices.values()) else {}


# The points of Annex IV to Regulation (EU) 2024/1689 that ask for something.
ANNEX_IV_POINTS = (
    *(f"1({letter})" for letter in "abcdefgh"),
    *(f"2({letter})" for letter in "abcdefgh"),
    *"3456789",
)


# From the use that licences restrict least to the one that they restrict most.
USES = ("research", "internal", "commercial", "distribution")


class GovernanceConfig(Section):
    """Rules and prices."""

    intended_use: Annotated[
        Literal["research", "internal", "commercial", "distribution"],
        Limit("license_audit", "higher", levels=USES),
    ] = "commercial"
    """Intended use, by which licences are judged: `research` (not commercial), `internal`
    (your own people), `commercial` (you host it, others are served by it), `distribution` (weights,
    or a product that holds them, are handed out)."""
    monthly_users: int | None = Field(None, ge=0)
    """Monthly active users of all products of yours and your affiliates, for licences with a limit
    (Llama: 700 million, Qwen: 100 million); null asks a person there."""
    domicile: Literal["eu", "elsewhere"] | None = None
    """Your domicile; in the European Union Llama 3.2 and 4 license no multimodal models. null asks
    a person there."""
    outputs_train_models: bool = False
    """Whether answers of the released model will train other models; some licences forbid that."""
    generated_by: dict[str, str] = Field({})
    """Licence of the model that wrote answers of the dataset, or whose service did (`openai`,
    `anthropic`, `google-api`), by source as `data.source` writes it; `*` means all of them."""
    package_licenses: dict[str, str] = Field({})
    """SPDX licence of packages whose own metadata state none, by the package's name."""
    machine_cost_per_hour: float = Field(0.10, ge=0)
    """Price of the serving machine, in `currency` an hour."""
    currency: str = "USD"
    """Currency of prices."""
    min_confidence: float = Field(-1.5, lt=0)
    """Mean token log-probability below which an answer counts as unsure, for drift and reviews.
    When an answer falls back is calibrated, see `fallback`."""
    fallback: FallbackConfig = FallbackConfig()
    """The chain of models that the release is served with."""
    canary: ReleaseCanaryConfig = ReleaseCanaryConfig()
    """The trial of the release before it answers everybody."""
    drift_p_value: float = Field(0.05, gt=0, lt=1)
    """Probability of a false alarm of drift in a year of nights."""
    signing_key: str | None = None
    """PEM file of the private key (elliptic curve) that signs releases, where the pods of lineage
    and promote find it; null signs none. Needs requirements/signing.txt."""
    public_key: str | None = None
    """PEM file of the public key by which promote checks the signature of a release; null checks
    none."""
    lock_days: int | None = Field(None, gt=0)
    """Days for which the files of a release are locked against deletion by the bucket's Object
    Lock; null leaves it to the bucket's own rule."""
    lock_mode: Literal["governance", "compliance"] = "governance"
    """Lock that those with the right to bypass it may lift, or that no one may."""
    model_license: str | None = None
    """SPDX licence under which the tuned model is given on, for its model card; null declares
    none."""
    annex_iv: dict[str, str] = Field({})
    """Your declarations for the technical documentation, by point of Annex IV of the EU AI Act:
    `1(a)` (intended purpose, provider) to `9`."""

    @field_validator("annex_iv")
    @classmethod
    def _points_are_of_the_annex(cls, texts: dict[str, str]) -> dict[str, str]:
        require_points(texts)
        return texts


def require_points(texts: Iterable[str]) -> None:
    """Raise ValueError for what is not a point of Annex IV."""
    unknown = [point for point in texts if point not in ANNEX_IV_POINTS]
    if unknown:
        raise ValueError(
            f"{', '.join(map(repr, unknown))} is not a point of Annex IV; the points are "
            f"{', '.join(ANNEX_IV_POINTS)}"
        )


class Waiver(Section):
    """A measurement that may break its limit, or a limit that may be looser than the policy's.

    Who stands for it is taken from Airflow; for a critical item the release needs an approval.
    """

    item: str
    """Id of the item."""
    limit: str | None = None
    """Setting whose looser limit is accepted (`evaluation.min_gain`); see config/policy.yaml."""
    measurement: str | None = None
    """Measurement of the item, or of an audit of it, that may break its limit."""
    up_to: float | bool | None = None
    """Value up to which it may: the greatest where the limit is an upper one, else the lowest."""
    reason: str = Field(min_length=10)
    """Why that is acceptable."""

    @model_validator(mode="after")
    def _names_one_thing(self) -> Waiver:
        if (self.limit is None) != (self.measurement is not None and self.up_to is not None):
            raise ValueError(
                f"a waiver of {self.item} accepts a limit (`limit`), or what is measured up to a "
                "value (`measurement` and `up_to`); the evidence names the measurements"
            )
        return self

    def __str__(self) -> str:
        return self.limit or f"{self.measurement} up to {self.up_to}"
