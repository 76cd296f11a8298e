"""The governance section: use, prices, drift, and failures that are accepted."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tuneline.config.section import Section


class GovernanceConfig(Section):
    """Rules and prices."""

    intended_use: Literal["internal", "commercial", "distribution"] = Field(
        "commercial", description="What the model is for; licences are judged by it."
    )
    machine_cost_per_hour: float = Field(
        0.10, ge=0, description="Price of the serving machine, in `currency` an hour."
    )
    currency: str = Field("USD", description="Currency of prices.")
    min_confidence: float = Field(
        -1.5, lt=0, description="Mean token log-probability below which an answer falls back."
    )
    drift_p_value: float = Field(
        0.05, gt=0, lt=1, description="Probability of a false alarm of drift in a year of nights."
    )
    signing_key: str | None = Field(
        None,
        description="PEM file of the private key (elliptic curve) that signs releases, where the "
        "pod of lineage finds it; None signs none. Needs requirements/signing.txt.",
    )
    public_key: str | None = Field(
        None,
        description="PEM file of the public key by which promote checks the signature of a "
        "release; None checks none.",
    )
    lock_days: int | None = Field(
        None,
        gt=0,
        description="Days for which the files of a release are locked against deletion by the "
        "bucket's Object Lock; None leaves it to the bucket's own rule.",
    )
    lock_mode: Literal["governance", "compliance"] = Field(
        "governance",
        description="Lock that those with the right to bypass it may lift, or that nobody may.",
    )


class Waiver(Section):
    """An item whose failure is accepted. Who accepts it is taken from Airflow."""

    item: str = Field(description="Id of the item.")
    reason: str = Field(min_length=10, description="Why its failure is acceptable.")
