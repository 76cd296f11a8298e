"""What changed between two releases: data, settings, base, code, engine, packages, metrics."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuneline.artifacts import release_log
from tuneline.artifacts.governance import Manifest, PointerMove
from tuneline.artifacts.release_log import Line, read_log
from tuneline.artifacts.releases import CONFIG_FILE, Release, current_release, find_version
from tuneline.errors import TunelineError, UserError
from tuneline.governance.release.verify import Version
from tuneline.store import Store, open_store

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """One value that differs between two releases."""

    section: str
    name: str
    before: Any
    after: Any


def find_release(address: str, store_uri: str | None) -> Release:
    """Return the release that an argument names.

    `address` is that of a `manifest.json`, `MODEL/VERSION`, or `MODEL` for its released version.
    """
    if "://" in address:
        place = Version.of(address)
        return _found(place.store, place.name, place.version)
    if not store_uri:
        raise UserError(
            f"no store to look for {address!r} in: give --store, set TUNELINE_STORE, or give the "
            "address of a manifest.json"
        )
    store = open_store(store_uri)
    name, _, version = address.partition("/")
    if not version:
        pointer = current_release(store, name)
        if pointer is None:
            raise UserError(f"{store.uri} has no release of {name!r}; name a version: {name}/…")
        version = pointer.version
    return _found(store, name, version)


def _found(store: Store, name: str, version: str) -> Release:
    release = find_version(store, name, version)
    if release is None:
        raise UserError(f"{store.uri} has no version {version!r} of {name!r}")
    return release


def changes(before: Release, after: Release) -> list[Change]:
    """Return what differs between two releases, section by section."""
    ours, theirs = _sections(before), _sections(after)
    return [
        Change(section, name, old, new)
        for section in ours
        for name in dict.fromkeys([*ours[section], *theirs[section]])
        if (old := ours[section].get(name)) != (new := theirs[section].get(name))
    ]


def _sections(release: Release) -> dict[str, Values]:
    manifest = release.manifest
    dataset = {k: v for k, v in manifest.dataset.items() if k not in ("sources", "reproduce")}
    sources = manifest.dataset.get("sources") or []
    return {
        "base": manifest.base_model,
        "data": {**flat(dataset), **{f"source {s.get('name')}": s.get("sha256") for s in sources}},
        "settings": _settings(release),
        "adapter": flat({name: manifest.hyperparameters.get(name) for name in ("lora", "plan")}),
        "policy": flat(manifest.policy.model_dump(mode="json") if manifest.policy else {}),
        "code": manifest.code,
        "engine": flat({**(manifest.engine or {}), "defaults": manifest.defaults}),
        "packages": _packages(manifest),
        "verdicts": {item: entry.verdict for item, entry in manifest.evidence.items()},
        "metrics": _metrics(release),
    }


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of nested objects by their paths; a list is one value."""
    if not isinstance(content, Mapping):
        return {prefix: content}
    found: dict[str, Any] = {}
    for name, value in content.items():
        found |= flat(value, f"{prefix}.{name}" if prefix else str(name))
    return found


def _settings(release: Release) -> Values:
    """Return the run's settings, without those of the adapter, which the manifest states."""
    raw = release.read(CONFIG_FILE)
    if raw is None:
        return flat({k: v for k, v in release.manifest.hyperparameters.items() if k != "lora"})
    return flat(json.loads(raw))


def _packages(manifest: Manifest) -> Values:
    """Return the versions of each package in the environments of the steps."""
    found: dict[str, set[str]] = {}
    for one in manifest.environments:
        for name, version in {"python": one.python, **one.packages}.items():
            found.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(versions)) for name, versions in sorted(found.items())}


def _metrics(release: Release) -> Values:
    """Return the numbers that decided, from the evidence that was shipped."""
    found: dict[str, Any] = {}
    for item in release.manifest.evidence:
        try:
            evidence = release.evidence(item)
        except TunelineError:
            continue
        if evidence is None:
            continue
        found |= {
            f"{item}.{one.name}": one.value for one in evidence.measurements if one.rule is not None
        }
    return found


def as_text(before: Release, after: Release, found: list[Change]) -> str:
    """Write the changes for a person, a section at a time."""
    parts = [f"{before.manifest.name} {before.version} → {after.manifest.name} {after.version}"]
    for section in dict.fromkeys(change.section for change in found):
        parts.append(section)
        parts += [
            f"  {change.name}: {_shown(change.before)} → {_shown(change.after)}{_by(change)}"
            for change in found
            if change.section == section
        ]
    return "\n".join(parts if found else [*parts, "nothing differs"])


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _by(change: Change) -> str:
    """Return the difference of two numbers."""
    numbers = [
        value
        for value in (change.before, change.after)
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return f"  ({numbers[1] - numbers[0]:+.4g})" if len(numbers) == 2 else ""


_SHORT = 12
# Columns of the drawing; longer lines are broken.
_WIDTH = 110


@dataclass(frozen=True)
class Ancestor:
    """One time that a version was released or returned to."""

    move: PointerMove
    facts: list[str] = field(default_factory=list)  # what it was made of, a line each
    events: list[str] = field(default_factory=list)  # what happened to it
    in_service: bool = False  # the pointer is there now

    @property
    def title(self) -> str:
        """One line that names it."""
        how = "rolled back to" if self.move.event == "rolled_back" else "released"
        now = ", in service" if self.in_service else ""
        return f"{self.move.version}  {how} {self.move.at}{now}"


def ancestors(store: Store, name: str) -> list[Ancestor]:
    """Return the releases of a model, newest first."""
    pointer = current_release(store, name)
    if pointer is None:
        raise UserError(f"{store.uri} has no release of {name!r}; check the name and the store")
    found = []
    for place, move in enumerate(pointer.history, 1):
        facts, events = _version(store, name, move.version)
        found.append(Ancestor(move, facts, events, place == len(pointer.history)))
    return found[::-1]


def _version(store: Store, name: str, version: str) -> tuple[list[str], list[str]]:
    try:
        release = find_version(store, name, version)
    except TunelineError as error:
        return [str(error)], []
    if release is None:
        return ["its manifest is gone"], []
    try:
        lines = read_log(store, name, version).lines()
    except TunelineError as error:
        return _facts(release.manifest), [str(error)]
    return _facts(release.manifest), [text for line in lines if (text := _told(line))]


def _facts(manifest: Manifest) -> list[str]:
    """Return what a version was made of."""
    data, base, code = manifest.dataset, manifest.base_model, manifest.code
    engine = manifest.engine or {}
    facts = [
        f"base     {base.get('uri', '?')}  {_short(base.get('digest'))}",
        f"dataset  {_short(data.get('version'))}  {data.get('rows', '?')} rows",
        *(
            f"source   {source.get('name')}  {_short(source.get('sha256'))}"
            for source in data.get("sources") or []
        ),
        f"code     {_short(code.get('commit')) if code.get('commit') else 'no commit'}"
        f"  ({code.get('note', '')})",
        f"engine   {engine.get('engine', 'none')}  {engine.get('version', '')}".rstrip(),
    ]
    verdicts = [entry.verdict for entry in manifest.evidence.values()]
    if verdicts:
        counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(sorted(verdicts)))
        facts.append(f"items    {counts}")
    if manifest.parent is not None:
        facts.append(f"parent   {manifest.parent.version}")
    if manifest.reason:
        facts.append(f"reason   {manifest.reason}")
    return facts


def _told(line: Line) -> str | None:
    """Return an event that a reader of the ancestry wants to know, None for the others."""
    match event := line.event:
        case release_log.Waived():
            return f"{line.at}  {event.item} waived by {event.by}: {event.reason}"
        case release_log.Canary():
            return f"{line.at}  canary of {event.share:.0%} {event.outcome}: {event.summary}"
        case release_log.RolledBack():
            return f"{line.at}  rolled back to from {event.previous_version}: {event.reason}"
        case release_log.Withdrawn():
            return f"{line.at}  withdrawn: {event.reason}"
        case release_log.Pushed():
            return f"{line.at}  pushed to {event.to} by {event.by}: {event.digest}"
        case _:
            return None


def _short(value: object) -> str:
    return str(value or "?")[:_SHORT]


def tree_text(name: str, line: Sequence[Ancestor]) -> str:
    """Draw the ancestry as text, newest first."""
    parts = [name]
    for place, one in enumerate(line):
        last = place == len(line) - 1
        parts.append(f"{'└' if last else '├'}─ {one.title}")
        stem = " " if last else "│"
        parts += [f"{stem}    {text}" for text in (*one.facts, *one.events)]
        parts += [] if last else ["│"]
    return "\n".join(parts)


def as_svg(name: str, line: Sequence[Ancestor]) -> str:
    """Draw the same as SVG, which asks nobody for its font."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=_WIDTH, file=io.StringIO())
    console.print(Text(tree_text(name, line)))
    drawing = console.export_svg(title=f"Releases of {name}")
    return re.sub(r"@font-face *\{[^{}]*\}", "", drawing)
