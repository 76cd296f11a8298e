"""Canaries of a follower: a new release answers a share of the keys until a rule decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tuneline.errors import TunelineError
from tuneline.serving.gateway.tally import Counts
from tuneline.serving.release.canary.judge import Judge, Verdict

_HOUR_SECONDS = 3600.0


class Records(Protocol):
    """Where canaries are recorded; the release log is on a floor above this one."""

    def due(self, name: str, version: str) -> bool:
        """Return True if a released version has not come through a canary yet."""

    def started(self, name: str, version: str, share: float) -> None:
        """Record that a canary has begun."""

    def promoted(self, name: str, version: str, share: float, reason: str) -> None:
        """Record that a version has come through its canary."""

    def withdrawn(self, name: str, version: str, share: float, reason: str) -> None:
        """Withdraw a version, and release the one before it again."""


@dataclass(frozen=True)
class CanaryOptions:
    """How new releases are tried.

    Attributes:
        share: share of the keys that go to the new release, from 0 to 1.
        hours: a canary that is not decided by then is withdrawn.
        records: where it is recorded.
    """

    share: float
    hours: float
    records: Records


@dataclass
class _Trial:
    version: str
    judge: Judge = field(default_factory=Judge)
    began: float = field(default_factory=time.monotonic)
    verdict: Verdict = field(default_factory=lambda: Verdict(None, "no answers yet"))
    recorded: bool = False


class Trials:
    """The canaries of all models.

    Args:
        options: how new releases are tried.
        say: takes one line for the log.
    """

    def __init__(self, options: CanaryOptions, say: Callable[[str], None]) -> None:
        self._options = options
        self._say = say
        self._trials: dict[str, _Trial] = {}
        self._passed: set[tuple[str, str]] = set()

    @property
    def share(self) -> float:
        """Share of the keys that go to a candidate."""
        return self._options.share

    def tries(self, name: str, version: str) -> bool:
        """Return True while a version is to answer its share only; begins its canary if due.

        A withdrawn one stays at its share, which ends when the pointer has moved.
        """
        if (name, version) in self._passed:
            return False
        trial = self._trials.get(name)
        if trial is None or trial.version != version:
            if not self._options.records.due(name, version):
                self._passed.add((name, version))
                return False
            self._options.records.started(name, version, self.share)
            self._trials[name] = _Trial(version)
            self._say(f"{name}@{version} is tried on {self.share:.0%} of the keys")
        return True

    def reason(self, name: str, version: str) -> str | None:
        """Return how the canary of a version stands, None if it has none."""
        trial = self._trials.get(name)
        if trial is None or trial.version != version or (name, version) in self._passed:
            return None
        return f"it is tried on {self.share:.0%} of the keys: {trial.verdict.reason}"

    def look(self, name: str, counts: Mapping[str, Any] | None) -> None:
        """Judge a canary by what its gateway has counted so far.

        Args:
            name: the model.
            counts: counts of `candidate` and `released`; None if the gateway has none.

        Raises:
            TunelineError: if the outcome can't be recorded now; the next look tries again.
        """
        trial = self._trials[name]
        if trial.verdict.outcome is None and counts is not None:
            arms = (Counts(**counts[arm]) for arm in ("candidate", "released"))
            trial.verdict = trial.judge.look(*arms)
        late = time.monotonic() - trial.began > self._options.hours * _HOUR_SECONDS
        if trial.verdict.outcome is None and late:
            why = f"undecided after {self._options.hours:g} hours: {trial.verdict.reason}"
            trial.verdict = Verdict("withdraw", why)
        if trial.verdict.outcome is not None and not trial.recorded:
            self._record(name, trial)
            trial.recorded = True

    def _record(self, name: str, trial: _Trial) -> None:
        records, reason = self._options.records, trial.verdict.reason
        if trial.verdict.outcome == "promote":
            records.promoted(name, trial.version, self.share, reason)
            self._passed.add((name, trial.version))
            self._say(f"{name}@{trial.version} is promoted: {reason}")
            return
        self._say(f"{name}@{trial.version} is withdrawn: {reason}")
        try:
            records.withdrawn(name, trial.version, self.share, reason)
        except TunelineError as error:
            self._say(f"{name}@{trial.version} can't be withdrawn now: {error}")
            raise
