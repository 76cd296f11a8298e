"""Find the base model that a line of releases began with.

Forgetting adds up: when each night trains on the merged model of the night before, every night may
lose a little within its limit, and nobody sees the sum. So general ability is held against the
base of the first release of the model, however many releases lie between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuneline.artifacts.releases import Release, ancestry, released
from tuneline.artifacts.training import MERGED
from tuneline.bases import base_of
from tuneline.errors import UserError
from tuneline.evidence import Measurement, measure
from tuneline.models import BaseModel, resolve
from tuneline.step_context import StepContext

_WEIGHTS = ".safetensors"


@dataclass(frozen=True)
class Origin:
    """The base model that general ability is measured against.

    Attributes:
        base: the base of the first release; the run's own while nothing is released.
        releases: releases since then, up to the one that the run would replace.
        whole: True if the manifests lead back to a release that none came before.
        descends: True if the run's base is that model, or a merged model of one of the releases.
    """

    base: BaseModel
    releases: int
    whole: bool = True
    descends: bool = True

    @property
    def name(self) -> str:
        """The base, and how far back it lies, for a sentence."""
        if not self.releases:
            return f"the base {self.base.uri}"
        count = "1 release" if self.releases == 1 else f"{self.releases} releases"
        return f"the first base {self.base.uri}, {count} back,"

    def measurements(self) -> list[Measurement]:
        """State the base, its distance, and that the line of releases has only one."""
        return [
            measure("measured_against", self.base.uri, ""),
            measure("measured_against_digest", self.base.digest, "sha256"),
            measure("releases_since_that_base", self.releases, "releases"),
            measure("base_descends_from_the_first", self.descends, "flag", "==", True),
            measure("manifests_lead_to_first", self.whole, "flag", "==", True, on_breach="warn"),
        ]


def find_origin(ctx: StepContext) -> Origin:
    """Find the base of the first release of the run's model.

    Raises:
        UserError: if that base can't be fetched, or is another model at its address now.
    """
    own = base_of(ctx)
    latest = released(ctx.run)
    if latest is None:
        return Origin(own, 0)
    line = list(ancestry(latest))
    first = line[-1]
    whole = first.manifest.previous_version is None
    stated = first.manifest.base_model
    if stated.get("digest") == own.digest:
        return Origin(own, len(line), whole)
    base = resolve(str(stated.get("uri")), log=ctx.log)
    if base.digest != stated.get("digest"):
        raise UserError(
            f"base_regression measures against the base of the first release, {base.uri}, which "
            f"has the digest {base.digest[:12]} now and had {str(stated.get('digest'))[:12]} in "
            f"{first.uri}; put that model back there"
        )
    return Origin(base, len(line), whole, descends=_is_merged(own, line))


def _is_merged(base: BaseModel, line: Sequence[Release]) -> bool:
    """Return True if a base has the weights that a release was merged to, wherever it lies."""
    weights = {sha256 for name, sha256 in base.files.items() if name.endswith(_WEIGHTS)}
    return bool(weights) and any(weights <= _merged_weights(release) for release in line)


def _merged_weights(release: Release) -> set[str]:
    try:
        artifacts = release.artifacts(MERGED.step)
    except UserError:
        return set()
    folder = f"{MERGED.name}/"
    return {
        ref.sha256
        for ref in artifacts
        if ref.name.startswith(folder) and ref.name.endswith(_WEIGHTS)
    }
