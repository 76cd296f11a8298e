"""How a release is tried on a share of the keys before everybody is answered by it."""

from __future__ import annotations

from pydantic import Field

from tuneline.config.section import Section


class ReleaseCanaryConfig(Section):
    """The canary of a release; the follower that serves it takes these from the release."""

    share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the keys that the release answers first, beside the version before "
        "it, until a rule promotes or withdraws it (0.1). 0 asks for no canary and leaves it to "
        "the follower's `--canary`.",
    )
    hours: float = Field(
        24.0,
        gt=0,
        le=168,
        description="A canary that is not decided after this many hours is withdrawn.",
    )
    begin_hours: float = Field(
        1.0,
        gt=0,
        le=24,
        description="A follower has to begin it within this many hours after the release, or the "
        "task `canary` of the run fails. Loading the model counts.",
    )
