"""Which releases share an engine: adapters of one base do, everything else has its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tuneline.artifacts.releases import Release
from tuneline.errors import RetryableError, TunelineError, UserError
from tuneline.serving.release.following.document import Facts
from tuneline.serving.release.following.failure import Failure
from tuneline.serving.release.released import Trust, adapter_name, open_version, upstream_of
from tuneline.store import CorruptObject, Store


@dataclass(frozen=True)
class Unit:
    """The releases that one engine serves.

    Attributes:
        engine: name of the engine.
        releases: the releases; several are adapters of one base.
    """

    engine: str
    releases: tuple[Release, ...]

    @property
    def key(self) -> str:
        """Its name in logs, files and in the status."""
        return "+".join(adapter_name(release) for release in self.releases)

    def serves(self, name: str, version: str) -> bool:
        """Return True if a version of a model is among its releases."""
        return any((r.name, r.version) == (name, version) for r in self.releases)


class Units:
    """Groups versions into units; what a release says is read once, since it never changes.

    Args:
        store: the store of the releases.
        facts: what releases state for the gateway.
        trust: whose releases are served; None serves all.
    """

    def __init__(self, store: Store, facts: Facts, trust: Trust | None) -> None:
        self._store = store
        self._facts = facts
        self._trust = trust
        self._known: dict[tuple[str, str], Release] = {}
        self._refused: dict[tuple[str, str], Failure] = {}

    def of(self, versions: Iterable[tuple[str, str]]) -> list[Unit]:
        """Return the units of versions of different models.

        Args:
            versions: names and versions.

        Raises:
            TunelineError: if a version can't be read, or may not be served here.
        """
        groups: dict[tuple[str, str], list[Release]] = {}
        for name, version in versions:
            release = self._release(name, version)
            # What has no base to share is a group of its own.
            base = release.apart.base.sha256 if release.apart else f"{name}@{version}"
            groups.setdefault((release.engine, base), []).append(release)
        return [Unit(engine, tuple(found)) for (engine, _), found in groups.items()]

    def admit(self, name: str, version: str, sha256: str) -> None:
        """Refuse a version that can't be served here.

        Args:
            name: the model.
            version: its version.
            sha256: the hash that its manifest must have.

        Raises:
            TunelineError: if it can't be read, has another manifest, or may not be served here.
        """
        release = self._release(name, version)
        if release.sha256 != sha256:
            raise CorruptObject(
                f"{release.uri} has SHA-256 {release.sha256}, the pointer of {name} says {sha256}"
            )

    def upstream(self, unit: Unit, name: str, base_url: str) -> dict[str, object]:
        """Return the gateway's entry of a model on the engine of a unit."""
        place = next(i for i, release in enumerate(unit.releases) if release.name == name)
        return upstream_of(unit.releases[place], place, base_url)

    def _release(self, name: str, version: str) -> Release:
        """Return a version, with everything that is read of it while it is served."""
        key = (name, version)
        if key not in self._known:
            refused = self._refused.setdefault(key, Failure())
            if not refused.over:
                raise UserError(refused.reason)
            try:
                release = open_version(self._store, name, version, trust=self._trust)
                self._facts.read(release)
            except RetryableError:
                raise
            except TunelineError as error:
                refused.note(str(error))
                raise
            self._known[key] = release
        return self._known[key]
