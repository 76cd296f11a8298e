"""Canaries: a new release answers a share of the keys until a rule decides.

Four shares of the requests are compared: errors, answers of low confidence, answers by a fallback,
and slow answers. With a probability of at most `false_withdrawal` a candidate that is worse in
none of them is ever withdrawn, and with at most `false_promotion` one that is worse by its margin
in any of them is ever promoted, however often is looked. Requests that come in bursts count for as
much as they tell, which needs looks further apart than a burst is long.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import TypeAdapter, ValidationError

from tuneline.config.governance import ReleaseCanaryConfig
from tuneline.errors import TunelineError
from tuneline.files import write_whole
from tuneline.serving.following.e_values import (
    Block,
    Dispersion,
    Progress,
    add_not_worse,
    add_worse,
)
from tuneline.serving.following.engines import EngineProcess
from tuneline.serving.following.targets import EngineUnit, EngineUnits, Target
from tuneline.serving.gateway.chain.canary import BOUNDS, ERRORS, FALLBACKS, LOW, ArmCounts

# An answer counts as slow if it takes longer than this share of the release's first answers.
_FAST_SHARE = 0.75
SLOW = "slow answers"
# The differences that are not accepted, in shares of the requests.
MARGINS = {ERRORS: 0.02, LOW: 0.05, FALLBACKS: 0.05, SLOW: 0.1}
_FILE = "canaries.json"
_HOUR_SECONDS = 3600.0

Report = Callable[[str, str], None]


@dataclass(frozen=True)
class Ruling:
    """What a canary has come to; no action while nothing is certain."""

    action: Literal["promote", "withdraw"] | None
    reason: str


@dataclass(frozen=True)
class Share:
    """Evidence that the candidate's share is larger, and that it is not by a margin."""

    worse: Progress = field(default_factory=Progress)
    not_worse: Progress = field(default_factory=Progress)
    dispersion: Dispersion = field(default_factory=Dispersion)

    def with_block(self, block: Block, margin: float) -> Share:
        """Return the evidence with one more block, weighed by the dispersion before it."""
        factor = self.dispersion.factor
        return Share(
            add_worse(self.worse, block, factor),
            add_not_worse(self.not_worse, block, margin, factor),
            self.dispersion.with_block(block),
        )


@dataclass(frozen=True)
class CanaryProgress:
    """All that a rule has seen; slow are the answers above a bucket of the latency."""

    shares: dict[str, Share]
    candidate: ArmCounts = field(default_factory=ArmCounts)
    released: ArmCounts = field(default_factory=ArmCounts)
    bucket: int | None = None

    def fits(self) -> bool:
        """Return False if its latencies were counted in other buckets."""
        buckets = len(BOUNDS) + 1
        return {len(c.seconds) for c in (self.candidate, self.released)} == {buckets}


class CanaryRule:
    """Decides on a canary from counts that only grow.

    Args:
        margins: the difference of each share that is not accepted.
        false_withdrawal: probability of withdrawing a candidate that is worse in nothing.
        false_promotion: probability of promoting one that is worse by a margin.

    Raises:
        ValueError: if an earlier rule of the same canary compared other shares.
    """

    def __init__(
        self,
        margins: Mapping[str, float] = MARGINS,
        *,
        false_withdrawal: float = 0.05,
        false_promotion: float = 0.05,
        known: CanaryProgress | None = None,
    ) -> None:
        # Any of the shares may withdraw, so they divide the error among them; all of them have
        # to speak for a promotion, so each has the whole.
        self._withdraw_at = math.log(len(margins) / false_withdrawal)
        self._promote_at = math.log(1 / false_promotion)
        known = known or CanaryProgress(dict.fromkeys(margins, Share()))
        if known.shares.keys() != margins.keys() or not known.fits():
            raise ValueError("it compared other shares")
        self._margins = margins
        self.known = known

    def begin_again(self) -> None:
        """Expect counts from zero, as after a restart of the gateway; what was seen stays seen."""
        self.known = replace(self.known, candidate=ArmCounts(), released=ArmCounts())

    def look(self, candidate: ArmCounts, released: ArmCounts) -> Ruling:
        """Take the counts of both arms so far, and return what they say."""
        known, bucket = self.known, self.known.bucket
        new = since(known.candidate, candidate), since(known.released, released)
        shares = dict(known.shares)
        for name, margin in self._margins.items():
            if (block := self._block(name, *new)) is not None:
                shares[name] = shares[name].with_block(block, margin)
        if bucket is None and released.requests:
            bucket = _bucket_of(released)
        self.known = CanaryProgress(shares, candidate, released, bucket)
        return self.ruling

    def _block(self, name: str, candidate: ArmCounts, released: ArmCounts) -> Block | None:
        bucket = self.known.bucket
        if name != SLOW:
            hits = candidate.hits.get(name, 0), released.hits.get(name, 0)
        elif bucket is None:
            # The first answers only say what is slow.
            return None
        else:
            hits = sum(candidate.seconds[bucket + 1 :]), sum(released.seconds[bucket + 1 :])
        return Block(candidate.requests, hits[0], released.requests, hits[1])

    @property
    def ruling(self) -> Ruling:
        """What all that it has seen says."""
        shares = self.known.shares
        requests = max(share.worse.seen.candidate for share in shares.values())
        for name, share in shares.items():
            if share.worse.log_e >= self._withdraw_at:
                return Ruling("withdraw", f"more {name} than the release after {requests} answers")
        open_ = [n for n, share in shares.items() if share.not_worse.log_e < self._promote_at]
        if not open_:
            return Ruling("promote", f"as good as the release after {requests} answers")
        return Ruling(None, f"{requests} answers do not decide about {', '.join(open_)}")


def since(before: ArmCounts, now: ArmCounts) -> ArmCounts:
    """Return what was added to counts; all of it if the counting has begun again."""
    if now.requests < before.requests:
        return now
    return ArmCounts(
        now.requests - before.requests,
        {name: count - before.hits.get(name, 0) for name, count in now.hits.items()},
        [new - old for new, old in zip(now.seconds, before.seconds, strict=True)],
    )


def _bucket_of(released: ArmCounts) -> int:
    """Return the bucket up to which answers are not slow."""
    below = 0
    for bucket, count in enumerate(released.seconds):
        below += count
        if below >= _FAST_SHARE * released.requests:
            return bucket
    return len(BOUNDS) - 1


@dataclass(frozen=True)
class CanaryState:
    """A canary that is not decided: Unix times of its begin, and of the gateway's first count."""

    version: str
    began: float
    counting: float | None
    known: CanaryProgress


_STATES: TypeAdapter[dict[str, CanaryState]] = TypeAdapter(dict[str, CanaryState])


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
        share: share of the keys that go to the new release; 0 tries only releases that ask for it.
        hours: a canary that is not decided by then is withdrawn.
        look_seconds: least time between two looks, longer than bursts of slow answers or errors.
    """

    share: float
    hours: float
    records: Records
    look_seconds: float

    def terms(self, asked: ReleaseCanaryConfig) -> tuple[float, float]:
        """Return share and hours of a release: its own, if it asks for a canary."""
        return (asked.share, asked.hours) if asked.share else (self.share, self.hours)


@dataclass
class _Canary:
    version: str
    share: float
    hours: float
    rule: CanaryRule = field(default_factory=CanaryRule)
    began: float = field(default_factory=time.time)
    counting: float | None = None
    looked: float = -math.inf
    ruling: Ruling = field(default_factory=lambda: Ruling(None, "no answers yet"))
    is_under_way: bool = False
    recorded: bool = False

    @property
    def state(self) -> CanaryState:
        return CanaryState(self.version, self.began, self.counting, self.rule.known)


class Canaries:
    """The canaries of all models."""

    def __init__(self, options: CanaryOptions, folder: Path, say: Callable[[str], None]) -> None:
        self._options = options
        self._folder = folder
        self._say = say
        self._canaries: dict[str, _Canary] = {}
        self._passed: set[tuple[str, str]] = set()
        # What an earlier follower left, and what was written last.
        self._left: dict[str, CanaryState] = {}
        self._kept: dict[str, CanaryState] | None = None
        try:
            self._left = _STATES.validate_json((folder / _FILE).read_bytes())
        except FileNotFoundError:
            pass
        except (OSError, ValidationError) as error:
            say(f"canaries begin again: {folder / _FILE} can't be read ({type(error).__name__})")

    def share(self, name: str) -> float:
        """Return the share of the keys that go to a model's candidate."""
        return self._canaries[name].share

    def wants(self, name: str, version: str, asked: ReleaseCanaryConfig) -> bool:
        """Return True while a version is not to answer more than its share.

        A withdrawn one stays at its share, which ends when the pointer has moved.

        Raises:
            TunelineError: if the release log can't be read now.
        """
        if (name, version) in self._passed:
            return False
        canary = self._canaries.get(name)
        if canary is None or canary.version != version:
            share, hours = self._options.terms(asked)
            if not share or not self._options.records.due(name, version):
                self._left.pop(name, None)
                self._passed.add((name, version))
                return False
            self._canaries[name] = self._resumed(name, _Canary(version, share, hours))
        return True

    def begin(self, name: str) -> None:
        """Record that the canary of a model's release is under way, once.

        Raises:
            TunelineError: if it can't be recorded now.
        """
        canary = self._canaries[name]
        if not canary.is_under_way:
            self._options.records.started(name, canary.version, canary.share)
            canary.is_under_way = True
            self._keep()
            what = f"{name}@{canary.version} is tried on {canary.share:.0%} of the keys"
            self._say(what if canary.counting is None else f"{what} again: {canary.ruling.reason}")

    def reason(self, name: str, version: str) -> str | None:
        """Return how the canary of a version stands, None if it has none."""
        canary = self._canaries.get(name)
        if canary is None or canary.version != version or (name, version) in self._passed:
            return None
        if not canary.is_under_way:
            return None
        return f"it is tried on {canary.share:.0%} of the keys: {canary.ruling.reason}"

    def look(self, name: str, counts: Mapping[str, Any] | None) -> None:
        """Judge a canary by what its gateway has counted so far of both arms, if it has.

        Raises:
            TunelineError: if the outcome can't be recorded now; the next look tries again.
        """
        canary = self._canaries[name]
        is_time = time.monotonic() - canary.looked >= self._options.look_seconds
        if canary.ruling.action is None and counts is not None and is_time:
            canary.looked = time.monotonic()
            if counts["began"] != canary.counting:
                # Another gateway, or the same after a restart.
                canary.rule.begin_again()
                canary.counting = counts["began"]
            arms = (ArmCounts(**counts[arm]) for arm in ("candidate", "released"))
            canary.ruling = canary.rule.look(*arms)
            self._keep()
        late = time.time() - canary.began > canary.hours * _HOUR_SECONDS
        if canary.ruling.action is None and late:
            why = f"undecided after {canary.hours:g} hours: {canary.ruling.reason}"
            canary.ruling = Ruling("withdraw", why)
        if canary.ruling.action is not None and not canary.recorded:
            self._record(name, canary)
            canary.recorded = True
            self._keep()

    def _resumed(self, name: str, new: _Canary) -> _Canary:
        """Return the canary that an earlier follower left undecided, or a new one."""
        left = self._left.pop(name, None)
        if left is None or left.version != new.version:
            return new
        try:
            rule = CanaryRule(known=left.known)
        except ValueError as error:
            self._say(f"the canary of {name}@{new.version} begins again: {error}")
            return new
        return replace(new, rule=rule, began=left.began, counting=left.counting, ruling=rule.ruling)

    def _keep(self) -> None:
        """Write the undecided canaries for the next follower."""
        states = {
            name: canary.state
            for name, canary in self._canaries.items()
            if (canary.is_under_way or canary.counting is not None) and not canary.recorded
        }
        # Those that are not looked at yet stay as they were left.
        states = self._left | states
        if states == self._kept:
            return
        try:
            write_whole(self._folder / _FILE, _STATES.dump_json(states))
            self._kept = states
        except OSError as error:
            # A ruling is worth more than a restart that begins again.
            self._say(f"the state of canaries can't be written: {error}")

    def _record(self, name: str, canary: _Canary) -> None:
        records, reason = self._options.records, canary.ruling.reason
        if canary.ruling.action == "promote":
            records.promoted(name, canary.version, canary.share, reason)
            self._passed.add((name, canary.version))
            self._say(f"{name}@{canary.version} is promoted: {reason}")
            return
        self._say(f"{name}@{canary.version} is withdrawn: {reason}")
        try:
            records.withdrawn(name, canary.version, canary.share, reason)
        except TunelineError as error:
            self._say(f"{name}@{canary.version} can't be withdrawn now: {error}")
            raise


class Candidates:
    """Which engines are candidates, what they are tried beside, and what has come of it."""

    def __init__(self, canaries: Canaries, units: EngineUnits, report: Report) -> None:
        self._canaries = canaries
        self._units = units
        self._report = report
        self._engines: dict[str, EngineProcess] = {}

    def of(self, name: str) -> tuple[EngineProcess, float] | None:
        """Return the candidate of a model and its share of the keys, None if it has none."""
        engine = self._engines.get(name)
        return (engine, self._canaries.share(name)) if engine else None

    def reason(self, name: str, version: str) -> str | None:
        """Return how the canary of a version stands, None if it has none."""
        return self._canaries.reason(name, version)

    def unit_beside(
        self, wanted: Target, served: Sequence[EngineProcess], engines: Sequence[EngineProcess]
    ) -> EngineUnit | None:
        """Return the unit of the version before where a canary needs it and nothing else serves."""
        if wanted.previous is None or _beside(wanted, served) or not self._wants(wanted):
            return None
        for engine in engines:
            if engine.unit.serves(wanted.name, wanted.previous):
                return engine.unit
        try:
            return self._units.of([(wanted.name, wanted.previous)])[0]
        except TunelineError as error:
            why = f"{wanted.name}@{wanted.version} has nothing to be compared with: {error}"
            self._report("canary", why)
            return None

    def standing(
        self,
        wanted: Target,
        target: EngineProcess,
        served: Sequence[EngineProcess],
        engines: Sequence[EngineProcess],
    ) -> list[EngineProcess] | None:
        """Return the chain beside which a ready release is tried, None if it may answer everybody.

        It is empty while nobody serves yet and the version before is on its way.
        """
        self._engines.pop(wanted.name, None)
        wants = self._wants(wanted) if wanted.previous else False
        if wants is False:
            return None
        before = [e for e in engines if _serves(e, wanted, str(wanted.previous))]
        chain = _beside(wanted, served) or [e for e in before if e.state == "ready"]
        if not chain:
            # Requests go before the comparison: what can answer does, once anybody answered.
            return [] if before and not served else None
        if wants is None:
            return chain
        try:
            self._canaries.begin(wanted.name)
        except TunelineError as error:
            self._report("canary", f"no canary can be recorded, so nothing is switched: {error}")
            return chain
        self._engines[wanted.name] = target
        return chain

    def look(self, counts: Mapping[str, Any]) -> None:
        """Judge the canaries that are under way."""
        for name, engine in self._engines.items():
            upstream = self._units.upstream(engine.unit, name, "")["name"]
            try:
                self._canaries.look(name, counts.get(str(upstream)))
                self._report("canary", "")
            except TunelineError as error:
                self._report("canary", f"a canary's outcome can't be recorded: {error}")

    def keep(self, names: Sequence[str], ready: Sequence[EngineProcess]) -> None:
        """Forget candidates of models that are gone, and engines that are not ready."""
        self._engines = {n: e for n, e in self._engines.items() if n in names and e in ready}

    def _wants(self, wanted: Target) -> bool | None:
        """Return whether a release is to be tried, None if that can't be known now."""
        try:
            self._units.of([(wanted.name, wanted.version)])
            asked = self._units.facts(wanted.name, wanted.version).settings.canary
            return self._canaries.wants(wanted.name, wanted.version, asked)
        except TunelineError as error:
            self._report("canary", f"no canary can be recorded, so nothing is switched: {error}")
            return None


def _serves(engine: EngineProcess, wanted: Target, version: str) -> bool:
    return engine.unit.serves(wanted.name, version)


def _beside(wanted: Target, served: Sequence[EngineProcess]) -> list[EngineProcess]:
    """Return the engines of a chain that are ready and not of the released version."""
    return [e for e in served if e.state == "ready" and not _serves(e, wanted, wanted.version)]
