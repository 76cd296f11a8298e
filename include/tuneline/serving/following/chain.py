"""The chain that is served: the release, the release before it, and a larger model.

One function builds it, for the gateway in service and for the item that proves it. It starts
nothing and reads nothing: whoever runs the engines says where they answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tuneline.artifacts.governance import CALIBRATION_FILE, Calibration
from tuneline.artifacts.releases import CONFIG_FILE, Release, readable
from tuneline.config.governance import FallbackConfig, LargerModel, ReleaseCanaryConfig

LARGER = "larger"

_WINDOW = "stream_window_tokens"


@dataclass(frozen=True)
class ServedChain:
    """A gateway's entries of `upstreams`, the primary first, and of `models` for one model."""

    upstreams: tuple[dict[str, Any], ...]
    model: dict[str, Any]


@dataclass(frozen=True)
class ChainSettings:
    """What a release is served with.

    Attributes:
        calibration: the thresholds that its run has found; None judges no confidence.
    """

    fallback: FallbackConfig = field(default_factory=FallbackConfig)
    calibration: Calibration | None = None
    canary: ReleaseCanaryConfig = field(default_factory=ReleaseCanaryConfig)

    def within(self, hosts: Iterable[str], keys: Mapping[str, str]) -> ChainSettings:
        """Return them without a larger model that a host leaves out, see `FallbackConfig`."""
        if self.fallback.refusal(hosts, keys) is None:
            return self
        return replace(self, fallback=self.fallback.model_copy(update={"larger": None}))

    @property
    def limits(self) -> dict[str, Any] | None:
        """The limits of confidence as a gateway's configuration states them, None for none."""
        return low_confidence(self.calibration, self.fallback.stream_window_tokens)


def served_chain(
    name: str,
    engines: Sequence[Mapping[str, Any]],
    settings: ChainSettings,
    *,
    behind: Sequence[str] = (),
) -> ServedChain:
    """Return the chain of a model.

    Args:
        engines: the upstreams of the engines that run: that of the release, and that of the release
            before it if there is one.
        behind: names of further upstreams, which the gateway's owner has configured.
    """
    fallback = settings.fallback
    times = fallback.model_dump(include={"answer_timeout_s", "first_token_timeout_s"})
    upstreams = [{**times, **engine} for engine in engines]
    if fallback.larger is not None:
        # It does the same task, which the system turn states; what it was not measured with stays
        # the client's.
        task = {"system": engines[0].get("system")}
        upstreams.append({**times, **_larger(name, fallback, fallback.larger), **task})
    chain = [*(str(upstream["name"]) for upstream in upstreams), *behind]
    model: dict[str, Any] = {"id": name, "chain": chain, "budget_s": fallback.budget_s}
    limits = settings.limits
    # Without another model there is nobody to ask about a doubtful answer.
    if limits is not None and len(chain) > 1:
        model["low_confidence"] = limits
    return ServedChain(tuple(upstreams), model)


def low_confidence(calibration: Calibration | None, window: int) -> dict[str, Any] | None:
    """Return the limits of confidence as a gateway's configuration states them, None for none."""
    if calibration is None or calibration.whole.value is None:
        return None
    limits: dict[str, Any] = {"min_mean_logprob": calibration.whole.value}
    stream = calibration.stream
    # The threshold of a beginning of another length says nothing about this one.
    if stream.value is not None and stream.tokens == window:
        limits |= {"stream_window_tokens": window, "stream_min_mean_logprob": stream.value}
    return limits


def settings_of(release: Release) -> ChainSettings:
    """Return the settings that a release was proven with, and its thresholds.

    Settings that this version of Tuneline does not know are passed over.

    Raises:
        CorruptObject: if a file has other bytes than the release states, or can't be read.
    """
    config, found = release.read(CONFIG_FILE), release.read(CALIBRATION_FILE)
    with readable(f"{CONFIG_FILE} of {release.uri}"):
        stated = json.loads(config).get("governance", {}) if config else {}
        fallback = FallbackConfig.model_validate(stated.get("fallback", {}), extra="ignore")
        canary = ReleaseCanaryConfig.model_validate(stated.get("canary", {}), extra="ignore")
    with readable(f"{CALIBRATION_FILE} of {release.uri}"):
        calibration = Calibration.model_validate_json(found) if found else None
    return ChainSettings(fallback, calibration, canary)


def _larger(name: str, settings: FallbackConfig, larger: LargerModel) -> dict[str, Any]:
    stated = {"base_url", "model", "api_key_env", "context_tokens"}
    price = {"price": settings.price()} if settings.price() else {}
    # It bills every token, so it is not pinged.
    own = {"name": f"{name}-{LARGER}", "ping": False, **price}
    return own | larger.model_dump(include=stated, exclude_none=True)


def candidate_limits(released: ChainSettings, candidate: ChainSettings) -> dict[str, Any] | None:
    """Return the limits of a candidate's answers, None if those of the release judge both.

    Log-probabilities of two models are no common measure, so each is judged by the threshold that
    was calibrated on its own right answers, if both were calibrated to the same target. With
    another target, or without a threshold, a candidate would be sure by its settings alone.
    """
    theirs, own = released.limits, candidate.limits
    if theirs is None or own is None:
        return None
    assert released.calibration is not None
    assert candidate.calibration is not None
    same_target = released.calibration.false_alarm_share == candidate.calibration.false_alarm_share
    # Whole answers alone, or streams by as many first tokens.
    judges_the_same = theirs.keys() == own.keys() and theirs.get(_WINDOW) == own.get(_WINDOW)
    return own if same_target and judges_the_same else None
