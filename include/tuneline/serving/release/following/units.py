"""Which releases share an engine: adapters of one base do, everything else has its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tuneline.serving.release.released import (
    Release,
    adapter_name,
    base_of,
    engine_of,
    find_release,
    upstream_of,
)
from tuneline.store import Store


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
    """Groups versions into units; what a manifest says is read once, since it never changes.

    Args:
        store: the store of the releases.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[tuple[str, str], tuple[Release, str, str | None]] = {}

    def of(self, versions: Iterable[tuple[str, str]]) -> list[Unit]:
        """Return the units of versions of different models.

        Args:
            versions: names and versions.

        Raises:
            UserError: if a version has no manifest.
        """
        groups: dict[tuple[str, str], list[Release]] = {}
        for name, version in versions:
            release, engine, base = self._facts(name, version)
            # What has no base to share is a group of its own.
            groups.setdefault((engine, base or f"{name}@{version}"), []).append(release)
        return [Unit(engine, tuple(found)) for (engine, _), found in groups.items()]

    def upstream(self, unit: Unit, name: str, base_url: str) -> dict[str, object]:
        """Return the gateway's entry of a model on the engine of a unit."""
        place = next(i for i, release in enumerate(unit.releases) if release.name == name)
        return upstream_of(self._store, unit.releases[place], place, base_url)

    def _facts(self, name: str, version: str) -> tuple[Release, str, str | None]:
        if (name, version) not in self._known:
            release = find_release(self._store, name, version)
            facts = (release, engine_of(self._store, release), base_of(self._store, release))
            self._known[name, version] = facts
        return self._known[name, version]
