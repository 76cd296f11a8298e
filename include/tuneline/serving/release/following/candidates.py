"""The engines of new releases that are tried on a share of the keys, beside what served before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tuneline.errors import TunelineError
from tuneline.serving.release.following.document import Facts
from tuneline.serving.release.following.engines import EngineProcess
from tuneline.serving.release.following.trials import Trials
from tuneline.serving.release.following.units import Unit, Units
from tuneline.serving.release.following.wanted import Wanted

Tell = Callable[[str, str], None]


class Candidates:
    """Which engines are candidates, what they are tried beside, and what has come of it.

    Args:
        trials: the canaries.
        units: the units of releases.
        facts: what releases state.
        tell: says something about a subject, until it changes.
    """

    def __init__(self, trials: Trials, units: Units, facts: Facts, tell: Tell) -> None:
        self._trials = trials
        self._units = units
        self._facts = facts
        self._tell = tell
        self._engines: dict[str, EngineProcess] = {}

    def of(self, name: str) -> tuple[EngineProcess, float] | None:
        """Return the candidate of a model and its share of the keys, None if it has none."""
        engine = self._engines.get(name)
        return (engine, self._trials.share(name)) if engine else None

    def reason(self, name: str, version: str) -> str | None:
        """Return how the canary of a version stands, None if it has none."""
        return self._trials.reason(name, version)

    def unit_beside(
        self, wanted: Wanted, served: Sequence[EngineProcess], engines: Sequence[EngineProcess]
    ) -> Unit | None:
        """Return the unit of the version before where a canary needs it and nothing else serves.

        Args:
            wanted: a model's released version and the one before.
            served: the engines of its chain.
            engines: all engines.
        """
        if wanted.previous is None or _beside(wanted, served) or not self._wants(wanted):
            return None
        for engine in engines:
            if engine.unit.serves(wanted.name, wanted.previous):
                return engine.unit
        try:
            return self._units.of([(wanted.name, wanted.previous)])[0]
        except TunelineError as error:
            why = f"{wanted.name}@{wanted.version} has nothing to be compared with: {error}"
            self._tell("canary", why)
            return None

    def standing(
        self,
        wanted: Wanted,
        target: EngineProcess,
        served: Sequence[EngineProcess],
        engines: Sequence[EngineProcess],
    ) -> list[EngineProcess] | None:
        """Return the chain beside which a release is tried, None if it is to answer everybody.

        Args:
            wanted: a model's released version and the one before.
            target: the engine of the released version, which is ready.
            served: the engines of its chain until now.
            engines: all engines.

        Returns:
            The chain; empty while nobody serves yet and the version before is on its way.
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
            self._trials.begin(wanted.name)
        except TunelineError as error:
            self._tell("canary", f"no canary can be recorded, so nothing is switched: {error}")
            return chain
        self._engines[wanted.name] = target
        return chain

    def look(self, counts: Mapping[str, Any]) -> None:
        """Judge the canaries that are under way.

        Args:
            counts: what the gateway has counted, by the candidate's upstream.
        """
        for name, engine in self._engines.items():
            upstream = self._units.upstream(engine.unit, name, "")["name"]
            try:
                self._trials.look(name, counts.get(str(upstream)))
                self._tell("canary", "")
            except TunelineError as error:
                self._tell("canary", f"a canary's outcome can't be recorded: {error}")

    def keep(self, names: Sequence[str], ready: Sequence[EngineProcess]) -> None:
        """Forget candidates of models that are gone, and engines that are not ready."""
        self._engines = {n: e for n, e in self._engines.items() if n in names and e in ready}

    def _wants(self, wanted: Wanted) -> bool | None:
        """Return whether a release is to be tried, None if that can't be known now."""
        try:
            release = self._units.of([(wanted.name, wanted.version)])[0].releases[0]
            asked = self._facts.settings(release).canary
            return self._trials.wants(wanted.name, wanted.version, asked)
        except TunelineError as error:
            self._tell("canary", f"no canary can be recorded, so nothing is switched: {error}")
            return None


def _serves(engine: EngineProcess, wanted: Wanted, version: str) -> bool:
    return engine.unit.serves(wanted.name, version)


def _beside(wanted: Wanted, served: Sequence[EngineProcess]) -> list[EngineProcess]:
    """Return the engines of a chain that are ready and not of the released version."""
    return [e for e in served if e.state == "ready" and not _serves(e, wanted, wanted.version)]
