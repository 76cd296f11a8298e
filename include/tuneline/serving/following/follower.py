"""Follow the store: start the new engine beside the old, warm it, switch, drain, stop.

`Follower.step` looks once at everything and does what is due; nothing in it waits. A release that
does not become ready is reported and tried again later, and what served before serves on.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.artifacts.governance import PointerName
from tuneline.artifacts.releases import model_names
from tuneline.errors import TunelineError
from tuneline.files import write_whole
from tuneline.machine.memory import free_memory
from tuneline.machine.redaction import redact
from tuneline.serving.following.canaries import Canaries, CanaryOptions, Candidates
from tuneline.serving.following.chain import candidate_limits
from tuneline.serving.following.engines import EngineProcess, Launch, take_over
from tuneline.serving.following.gateway_file import (
    CanaryEntry,
    GatewayFile,
    GatewayState,
    ServedEntry,
    allowed,
    gateway_document,
)
from tuneline.serving.following.release import Trust
from tuneline.serving.following.status import EngineRow, ModelRow, Status
from tuneline.serving.following.targets import EngineUnit, EngineUnits, Failure, Pointers, Target
from tuneline.store import Store

Say = Callable[[str], None]

# Without named models, the whole store is searched for new ones this often.
_SEARCH_SECONDS = 30.0
_OFFER_AGAIN_SECONDS = 15.0
ENGINES_FILE = "engines.json"


@dataclass(frozen=True)
class Options:
    """What a follower follows, and how.

    Attributes:
        names: the models; none follows all of the store.
        pointer: which of their pointers.
        settings: configuration of the gateway, without what is released.
        drain_seconds: longest time that an old engine waits for requests under way.
    """

    names: Sequence[str]
    settings: Mapping[str, Any]
    canary: CanaryOptions
    trust: Trust | None = None
    keep_previous: bool = True
    drain_seconds: float = 330.0
    every: float = 2.0
    pointer: PointerName = "production"


class Follower:
    """Engines and a gateway's file that follow the releases of a store."""

    def __init__(
        self,
        store: Store,
        options: Options,
        launch: Launch,
        gateway: GatewayFile,
        *,
        folder: Path,
        say: Say,
    ) -> None:
        self._store = store
        self._options = options
        self._launch = launch
        self._gateway = gateway
        self._folder = folder
        self._say = say
        self._units = EngineUnits(store, folder / "releases", options.trust)
        self._pointers = Pointers(
            store,
            folder,
            options.trust,
            self._units.admit,
            options.canary.records.go_back,
            options.pointer,
        )
        self._engines: list[EngineProcess] = []
        self._leaving: dict[EngineProcess, float] = {}
        self._stopping: list[EngineProcess] = []
        self._wanted: list[Target] = []
        self._found: tuple[float, list[str]] | None = None
        self._failures: dict[str, Failure] = {}
        # The engines of each model's chain, as they were written last.
        self._chains: dict[str, list[EngineProcess]] = {}
        canaries = Canaries(options.canary, folder, say)
        self._candidates = Candidates(canaries, self._units, self._report)
        # Whether an engine may stay as a fallback, decided once.
        self._stays: dict[EngineProcess, bool] = {}
        # Entries of the file that was there before: a model keeps them until it has an engine.
        self._inherited = gateway.entries()
        self._looked = self._offered = -math.inf
        self._recorded = ""
        self._reported: dict[str, str] = {}

    def take_over(self) -> None:
        """Take over the engines of an earlier follower of the same folder."""

        def unit_of(versions: list[tuple[str, str]]) -> EngineUnit:
            return self._units.of(versions)[0]

        path = self._folder / ENGINES_FILE
        self._engines = take_over(path, unit_of, self._launch.start_seconds, self._say)
        for engine in self._engines:
            self._say(f"taking over the engine of {engine.unit.key} on port {engine.port}")

    def step(self) -> Status:
        """Do what is due, and return how things are."""
        self._look()
        targets = self._targets()
        for engine in list(self._engines):
            self._look_at(engine)
        self._start_missing(targets)
        chains = {wanted.name: self._chain(wanted, targets) for wanted in self._wanted}
        self._chains = {name: chain for name, chain in chains.items() if chain}
        ready = [e for e in self._engines if e.state == "ready"]
        self._candidates.keep(list(chains), ready)
        if self._gateway.write(self._document()):
            self._say(f"gateway: {self._summary()}")
        state = self._gateway.state()
        if state is not None:
            self._candidates.look(state.canary)
        self._offer_again(state)
        self._stop_unused(targets, state)
        return self._record(state)

    @property
    def hurries(self) -> bool:
        """True while something is under way that is worth looking at soon."""
        starting = any(engine.state == "starting" for engine in self._engines)
        return starting or bool(self._stopping) or bool(self._leaving)

    def stop(self) -> None:
        """Stop all engines, as soon as they have finished their requests."""
        engines = [*self._engines, *self._stopping]
        for engine in self._engines:
            engine.begin_stop()
        while not all(engine.stopped() for engine in engines):
            time.sleep(0.1)
        self._engines, self._stopping = [], []
        self._write_engines()

    def _look(self) -> None:
        """Read what is wanted; what was wanted before holds while the store can't be read."""
        now = time.monotonic()
        if now - self._looked < self._options.every:
            return
        self._looked = now
        try:
            self._wanted = self._pointers.wanted(self._options.names or self._search())
            why = self._pointers.unread
        except (TunelineError, OSError) as error:
            why = str(error)
        self._report(
            "store", f"the store can't be followed, what is served stays: {why}" if why else ""
        )
        for name in {*self._pointers.refused, *(row.name for row in self._wanted)}:
            refused = self._pointers.refused.get(name)
            text = f"{name}: its release pointer is not followed: {refused}" if refused else ""
            self._report(f"pointer of {name}", text)

    def _search(self) -> list[str]:
        now = time.monotonic()
        if self._found is None or not self._found[1] or now - self._found[0] > _SEARCH_SECONDS:
            self._found = now, model_names(self._store, self._options.pointer)
        return self._found[1]

    def _targets(self) -> list[EngineUnit]:
        fit = []
        for wanted in self._wanted:
            try:
                self._units.of([(wanted.name, wanted.version)])
            except TunelineError as error:
                self._fail(f"{wanted.name}@{wanted.version}", str(error))
            else:
                fit.append((wanted.name, wanted.version))
        targets = self._units.of(fit)
        for wanted in self._wanted:
            served = self._chains.get(wanted.name, [])
            beside = self._candidates.unit_beside(wanted, served, self._engines)
            targets += [beside] if beside and beside not in targets else []
        return targets

    def _look_at(self, engine: EngineProcess) -> None:
        before = engine.state
        engine.look([self._entry(engine, r.name) for r in engine.unit.releases])
        if engine.state == "failed":
            self._engines.remove(engine)
            self._fail(engine.unit.key, engine.reason)
        elif engine.state != before:
            self._failures.pop(engine.unit.key, None)
            self._say(f"the engine of {engine.unit.key} has written a token")

    def _start_missing(self, targets: Sequence[EngineUnit]) -> None:
        # What is on its way out frees the memory that the new one may need.
        if self._stopping:
            return
        missing = [unit for unit in targets if self._engine_of(unit) is None]
        if not missing and all(e.state == "ready" for e in self._engines):
            missing = self._missing_previous()
        for unit in missing:
            failure = self._failures.get(unit.key)
            if failure is None or failure.over:
                engine = EngineProcess.start(unit, self._launch)
                self._say(f"starting the engine of {unit.key} on port {engine.port}")
                self._engines.append(engine)
                self._write_engines()

    def _missing_previous(self) -> list[EngineUnit]:
        """Return the units to fall back to that are not running, as far as memory goes."""
        if not self._options.keep_previous:
            return []
        for wanted in self._wanted:
            if wanted.previous and self._ready(wanted.name, wanted.previous) is None:
                current = self._ready(wanted.name, wanted.version)
                # Room for it, and for the release that follows.
                if current is None or free_memory() < 2 * current.memory_bytes():
                    continue
                try:
                    return self._units.of([(wanted.name, wanted.previous)])
                except TunelineError as error:
                    self._fail(f"{wanted.name}@{wanted.previous}", str(error))
        return []

    def _chain(self, wanted: Target, targets: Sequence[EngineUnit]) -> list[EngineProcess]:
        """Return the engines that answer for a model, the primary first."""
        unit = next((u for u in targets if u.serves(wanted.name, wanted.version)), None)
        target = self._engine_of(unit) if unit else None
        if target is None or target.state != "ready":
            target = self._ready(wanted.name, wanted.version)
        if target is None:
            # What serves goes on; a dead engine is better named in an error than unknown.
            before = self._chains.get(wanted.name, [])
            return [e for e in before if e.state == "ready"] or before
        served = self._chains.get(wanted.name, [])
        standing = self._candidates.standing(wanted, target, served, self._engines)
        if standing is not None:
            return standing
        previous = None
        if self._options.keep_previous and wanted.previous:
            previous = self._ready(wanted.name, wanted.previous)
        if previous is None:
            return [target]
        # The next release needs room too.
        stays = self._stays.setdefault(previous, free_memory() > target.memory_bytes())
        return [target, previous] if stays else [target]

    def _document(self) -> dict[str, Any]:
        served: list[ServedEntry] = []
        spoken: list[str] = []
        currencies: list[str] = []
        released = {wanted.name: wanted.version for wanted in self._wanted}
        for name, engines in self._chains.items():
            entries, settings = [], []
            candidate, share = self._candidates.of(name) or (None, 0.0)
            for engine in [*engines, *([candidate] if candidate else [])]:
                version = next(r.version for r in engine.unit.releases if r.name == name)
                facts = self._units.facts(name, version)
                entries.append({**self._entry(engine, name), **facts.fields})
                settings.append(facts.settings)
                spoken += facts.languages
                currencies += [facts.currency] if facts.currency else []
            tried = None
            if candidate:
                tried = CanaryEntry(
                    entries.pop(), share, candidate_limits(settings[0], settings[-1])
                )
            served.append(ServedEntry(name, released[name], tuple(entries), settings[0], tried))
            left_out = settings[0].fallback.refusal(*allowed(self._options.settings))
            self._report(f"larger model of {name}", f"{name}: {left_out}" if left_out else "")
        for name, version in released.items():
            if name not in self._chains and name in self._inherited:
                served.append(ServedEntry(name, version, tuple(self._inherited[name])))
        return gateway_document(
            self._options.settings, served, list(dict.fromkeys(spoken)), currencies
        )

    def _entry(self, engine: EngineProcess, name: str) -> dict[str, Any]:
        return dict(self._units.upstream(engine.unit, name, f"{engine.url}/v1"))

    def _offer_again(self, state: GatewayState | None) -> None:
        if state is None or state.refused != self._gateway.fingerprint:
            self._report("gateway", "")
            return
        self._report("gateway", "the gateway refuses its configuration; its log says why")
        if time.monotonic() - self._offered > _OFFER_AGAIN_SECONDS:
            self._offered = time.monotonic()
            self._gateway.offer_again()

    def _stop_unused(self, targets: Sequence[EngineUnit], state: GatewayState | None) -> None:
        """Stop engines that nobody asks any more, once their last request has ended."""
        self._stopping = [engine for engine in self._stopping if not engine.stopped()]
        asked = {id(engine) for chain in self._chains.values() for engine in chain}
        wanted = {id(self._engine_of(unit)) for unit in targets}
        wanted |= {id(e) for e in self._engines if e.state == "starting" and self._is_previous(e)}
        unused = [e for e in self._engines if id(e) not in asked | wanted]
        self._leaving = {e: since for e, since in self._leaving.items() if e in unused}
        switched = state is not None and state.taken == self._gateway.fingerprint
        for engine in unused:
            since = self._leaving.setdefault(engine, time.monotonic())
            overdue = time.monotonic() - since > self._options.drain_seconds
            idle = switched and state is not None and state.retiring == 0
            # One that never became ready was never asked.
            if engine.state == "starting" or idle or (switched and overdue):
                self._say(f"stopping the engine of {engine.unit.key}")
                del self._leaving[engine]
                self._engines.remove(engine)
                engine.begin_stop()
                self._stopping.append(engine)
        self._write_engines()

    def _is_previous(self, engine: EngineProcess) -> bool:
        return self._options.keep_previous and any(
            w.previous is not None and engine.unit.serves(w.name, w.previous) for w in self._wanted
        )

    def _engine_of(self, unit: EngineUnit) -> EngineProcess | None:
        return next((engine for engine in self._engines if engine.unit == unit), None)

    def _ready(self, name: str, version: str) -> EngineProcess | None:
        return next(
            (e for e in self._engines if e.state == "ready" and e.unit.serves(name, version)), None
        )

    def _fail(self, key: str, reason: str) -> None:
        failure = self._failures.setdefault(key, Failure())
        if failure.note(redact(reason)):
            tries = f" after {failure.count} tries" if failure.count > 1 else ""
            self._say(f"{key} is not served{tries}: {failure.reason}")

    def _report(self, subject: str, text: str) -> None:
        """Say something once, until it changes."""
        text = redact(text)
        if self._reported.get(subject, "") != text:
            self._reported[subject] = text
            self._say(text or f"{subject}: all is well again")

    def _summary(self) -> str:
        models = (
            f"{name} is answered by {', then '.join(e.unit.key for e in chain)}"
            for name, chain in self._chains.items()
        )
        return "; ".join(models) or "no model is released yet"

    def _record(self, state: GatewayState | None) -> Status:
        switched = state is not None and state.taken == self._gateway.fingerprint
        models = []
        for wanted in self._wanted:
            chain = self._chains.get(wanted.name, [])
            served = next(
                (r.version for e in chain[:1] for r in e.unit.releases if r.name == wanted.name),
                None,
            )
            key = next(
                (k for k in self._failures if f"{wanted.name}@{wanted.version}" in k.split("+")),
                None,
            )
            reason = self._failures[key].reason if key and served != wanted.version else None
            reason = reason or self._candidates.reason(wanted.name, wanted.version)
            refused = self._pointers.refused.get(wanted.name)
            row = ModelRow(wanted.name, wanted.version, served, len(chain) > 1, reason, refused)
            models.append(row)
        for name in self._pointers.refused.keys() - {row.name for row in models}:
            why = self._pointers.refused[name]
            models.append(ModelRow(name, None, None, False, None, why))
        engines = [
            EngineRow(engine.unit.key, engine.port, engine.state, engine.reason)
            for engine in self._engines
        ]
        status = Status(models, engines, switched, self._reported.get("gateway") or None)
        status.write(self._folder)
        return status

    def _write_engines(self) -> None:
        records = [engine.record for engine in [*self._engines, *self._stopping]]
        text = json.dumps(records)
        if text != self._recorded:
            write_whole(self._folder / ENGINES_FILE, text.encode())
            self._recorded = text
