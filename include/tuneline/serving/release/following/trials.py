"""Canaries of a follower: a new release answers a share of the keys until a rule decides."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from tuneline.config.governance import ReleaseCanaryConfig
from tuneline.errors import TunelineError
from tuneline.serving.gateway.tally import Counts
from tuneline.serving.release.canary.judge import Judge, Verdict
from tuneline.serving.release.following.trial_state import (
    TrialState,
    read_trials,
    write_trials,
)

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

    def go_back(self, name: str) -> None:
        """Release the version before again, if a withdrawal of the released one broke off."""


@dataclass(frozen=True)
class CanaryOptions:
    """How new releases are tried, where they do not say so themselves.

    Attributes:
        share: share of the keys that go to the new release, from 0 to 1; 0 tries only releases
            that ask for it.
        hours: a canary that is not decided by then is withdrawn.
        records: where it is recorded.
        look_seconds: least time between two looks at the counts, longer than the bursts of slow
            answers or errors are.
    """

    share: float
    hours: float
    records: Records
    look_seconds: float

    def terms(self, asked: ReleaseCanaryConfig) -> tuple[float, float]:
        """Return share and hours of a release: its own, if it asks for a canary."""
        return (asked.share, asked.hours) if asked.share else (self.share, self.hours)


@dataclass
class _Trial:
    version: str
    share: float
    hours: float
    judge: Judge = field(default_factory=Judge)
    began: float = field(default_factory=time.time)
    counting: float | None = None
    looked: float = -math.inf
    verdict: Verdict = field(default_factory=lambda: Verdict(None, "no answers yet"))
    is_under_way: bool = False
    recorded: bool = False

    @property
    def state(self) -> TrialState:
        """What the next follower needs."""
        return TrialState(self.version, self.began, self.counting, self.judge.known)


class Trials:
    """The canaries of all models.

    Args:
        options: how new releases are tried.
        folder: the follower's folder, where undecided ones are kept for the next follower.
        say: takes one line for the log.
    """

    def __init__(self, options: CanaryOptions, folder: Path, say: Callable[[str], None]) -> None:
        self._options = options
        self._folder = folder
        self._say = say
        self._trials: dict[str, _Trial] = {}
        self._passed: set[tuple[str, str]] = set()
        # What an earlier follower left, and what was written last.
        self._left: dict[str, TrialState] = {}
        self._kept: dict[str, TrialState] | None = None
        try:
            self._left = read_trials(folder)
        except ValueError as error:
            say(f"canaries begin again: {error}")

    def share(self, name: str) -> float:
        """Return the share of the keys that go to a model's candidate."""
        return self._trials[name].share

    def wants(self, name: str, version: str, asked: ReleaseCanaryConfig) -> bool:
        """Return True while a version is not to answer more than its share.

        A withdrawn one stays at its share, which ends when the pointer has moved.

        Args:
            name: the model.
            version: its released version.
            asked: what the version asks for.

        Raises:
            TunelineError: if the release log can't be read now.
        """
        if (name, version) in self._passed:
            return False
        trial = self._trials.get(name)
        if trial is None or trial.version != version:
            share, hours = self._options.terms(asked)
            if not share or not self._options.records.due(name, version):
                self._left.pop(name, None)
                self._passed.add((name, version))
                return False
            self._trials[name] = self._trial(name, _Trial(version, share, hours))
        return True

    def begin(self, name: str) -> None:
        """Record that the canary of a model's release is under way, once.

        Raises:
            TunelineError: if it can't be recorded now.
        """
        trial = self._trials[name]
        if not trial.is_under_way:
            self._options.records.started(name, trial.version, trial.share)
            trial.is_under_way = True
            self._keep()
            what = f"{name}@{trial.version} is tried on {trial.share:.0%} of the keys"
            self._say(what if trial.counting is None else f"{what} again: {trial.verdict.reason}")

    def reason(self, name: str, version: str) -> str | None:
        """Return how the canary of a version stands, None if it has none."""
        trial = self._trials.get(name)
        if trial is None or trial.version != version or (name, version) in self._passed:
            return None
        if not trial.is_under_way:
            return None
        return f"it is tried on {trial.share:.0%} of the keys: {trial.verdict.reason}"

    def look(self, name: str, counts: Mapping[str, Any] | None) -> None:
        """Judge a canary by what its gateway has counted so far.

        Args:
            name: the model.
            counts: counts of `candidate` and `released`, and when they `began`; None if the
                gateway has none.

        Raises:
            TunelineError: if the outcome can't be recorded now; the next look tries again.
        """
        trial = self._trials[name]
        is_time = time.monotonic() - trial.looked >= self._options.look_seconds
        if trial.verdict.outcome is None and counts is not None and is_time:
            trial.looked = time.monotonic()
            if counts["began"] != trial.counting:
                # Another gateway, or the same after a restart.
                trial.judge.begin_again()
                trial.counting = counts["began"]
            arms = (Counts(**counts[arm]) for arm in ("candidate", "released"))
            trial.verdict = trial.judge.look(*arms)
            self._keep()
        late = time.time() - trial.began > trial.hours * _HOUR_SECONDS
        if trial.verdict.outcome is None and late:
            why = f"undecided after {trial.hours:g} hours: {trial.verdict.reason}"
            trial.verdict = Verdict("withdraw", why)
        if trial.verdict.outcome is not None and not trial.recorded:
            self._record(name, trial)
            trial.recorded = True
            self._keep()

    def _trial(self, name: str, new: _Trial) -> _Trial:
        """Return the canary that an earlier follower left undecided, or a new one."""
        left = self._left.pop(name, None)
        if left is None or left.version != new.version:
            return new
        try:
            judge = Judge(known=left.known)
        except ValueError as error:
            self._say(f"the canary of {name}@{new.version} begins again: {error}")
            return new
        return replace(
            new, judge=judge, began=left.began, counting=left.counting, verdict=judge.verdict
        )

    def _keep(self) -> None:
        """Write the undecided canaries for the next follower."""
        states = {
            name: trial.state
            for name, trial in self._trials.items()
            if (trial.is_under_way or trial.counting is not None) and not trial.recorded
        }
        # Those that are not looked at yet stay as they were left.
        states = self._left | states
        if states == self._kept:
            return
        try:
            write_trials(self._folder, states)
            self._kept = states
        except OSError as error:
            # A verdict is worth more than a restart that begins again.
            self._say(f"the state of canaries can't be written: {error}")

    def _record(self, name: str, trial: _Trial) -> None:
        records, reason = self._options.records, trial.verdict.reason
        if trial.verdict.outcome == "promote":
            records.promoted(name, trial.version, trial.share, reason)
            self._passed.add((name, trial.version))
            self._say(f"{name}@{trial.version} is promoted: {reason}")
            return
        self._say(f"{name}@{trial.version} is withdrawn: {reason}")
        try:
            records.withdrawn(name, trial.version, trial.share, reason)
        except TunelineError as error:
            self._say(f"{name}@{trial.version} can't be withdrawn now: {error}")
            raise
