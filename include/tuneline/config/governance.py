"""The governance section: use, prices, drift, and failures that are accepted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, field_validator, model_validator

from tuneline.config.keyless import KeylessConfig
from tuneline.config.release_canary import ReleaseCanaryConfig
from tuneline.config.section import Section
from tuneline.config.served_chain import FallbackConfig

# The points of Annex IV to Regulation (EU) 2024/1689 that ask for something.
ANNEX_IV_POINTS = (
    *(f"1({letter})" for letter in "abcdefgh"),
    *(f"2({letter})" for letter in "abcdefgh"),
    *"3456789",
)


class GovernanceConfig(Section):
    """Rules and prices."""

    intended_use: Literal["research", "internal", "commercial", "distribution"] = Field(
        "commercial",
        description="What the model is for; licences are judged by it: `research` (not "
        "commercial), `internal` (your own people), `commercial` (you host it, others are served "
        "by it), `distribution` (weights, or a product that holds them, are handed out).",
    )
    monthly_users: int | None = Field(
        None,
        ge=0,
        description="Monthly active users of all products of yours and your affiliates, for "
        "licences with a limit (Llama: 700 million, Qwen: 100 million); null asks a person there.",
    )
    domicile: Literal["eu", "elsewhere"] | None = Field(
        None,
        description="Whether you are at home in the European Union, where Llama 3.2 and 4 license "
        "no multimodal models; null asks a person there.",
    )
    outputs_train_models: bool = Field(
        False,
        description="Whether answers of the released model will train other models; some licences "
        "forbid that.",
    )
    generated_by: dict[str, str] = Field(
        {},
        description="Licence of the model that wrote answers of the dataset, or whose service did "
        "(`openai`, `anthropic`, `google-api`), by source as `data.source` writes it; `*` stands "
        "for all of them.",
    )
    package_licenses: dict[str, str] = Field(
        {},
        description="SPDX licence of packages whose own metadata state none, by the package's "
        "name.",
    )
    machine_cost_per_hour: float = Field(
        0.10, ge=0, description="Price of the serving machine, in `currency` an hour."
    )
    currency: str = Field("USD", description="Currency of prices.")
    min_confidence: float = Field(
        -1.5,
        lt=0,
        description="Mean token log-probability below which an answer counts as unsure, for drift "
        "and reviews. When an answer falls back is calibrated, see `fallback`.",
    )
    fallback: FallbackConfig = Field(
        FallbackConfig(), description="The chain of models that the release is served with."
    )
    canary: ReleaseCanaryConfig = Field(
        ReleaseCanaryConfig(), description="How the release is tried before it answers everybody."
    )
    drift_p_value: float = Field(
        0.05, gt=0, lt=1, description="Probability of a false alarm of drift in a year of nights."
    )
    signing_key: str | None = Field(
        None,
        description="PEM file of the private key (elliptic curve) that signs releases, where the "
        "pods of lineage and promote find it; null signs none. Needs requirements/signing.txt.",
    )
    public_key: str | None = Field(
        None,
        description="PEM file of the public key by which promote checks the signature of a "
        "release; null checks none.",
    )
    keyless: KeylessConfig | None = Field(
        None,
        description="Sign releases by an identity (Sigstore) instead of a key, and have promote "
        "check it; needs a network and requirements/signing.txt.",
    )
    lock_days: int | None = Field(
        None,
        gt=0,
        description="Days for which the files of a release are locked against deletion by the "
        "bucket's Object Lock; null leaves it to the bucket's own rule.",
    )
    lock_mode: Literal["governance", "compliance"] = Field(
        "governance",
        description="Lock that those with the right to bypass it may lift, or that nobody may.",
    )
    model_license: str | None = Field(
        None,
        description="SPDX licence under which the tuned model is given on, for its model card; "
        "null declares none.",
    )
    annex_iv: dict[str, str] = Field(
        {},
        description="What you declare for the technical documentation, by point of Annex IV of the "
        "EU AI Act: `1(a)` (intended purpose, provider) to `9`.",
    )

    @model_validator(mode="after")
    def _signed_in_one_way(self) -> GovernanceConfig:
        if self.keyless is not None and (self.signing_key or self.public_key):
            raise ValueError("signing_key and public_key, or keyless: a release has one signature")
        return self

    @field_validator("annex_iv")
    @classmethod
    def _points_are_of_the_annex(cls, texts: dict[str, str]) -> dict[str, str]:
        require_points(texts)
        return texts


def require_points(texts: Iterable[str]) -> None:
    """Refuse what is not a point of Annex IV.

    Raises:
        ValueError: if a point is unknown.
    """
    unknown = [point for point in texts if point not in ANNEX_IV_POINTS]
    if unknown:
        raise ValueError(
            f"{', '.join(map(repr, unknown))} is no point of Annex IV; the points are "
            f"{', '.join(ANNEX_IV_POINTS)}"
        )


class Waiver(Section):
    """An item whose failure is accepted. Who accepts it is taken from Airflow."""

    item: str = Field(description="Id of the item.")
    limit: str | None = Field(
        None,
        description="Setting whose looser limit is accepted, instead of the failure of the item "
        "(`evaluation.min_gain`); see config/policy.yaml.",
    )
    reason: str = Field(min_length=10, description="Why its failure is acceptable.")
