"""The licences of the packages in an environment, read from their own metadata.

The order of trust is that of PEP 639: expression, then the licence field, then the trove
classifiers, then the first words of the licence files.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuneline.errors import TunelineError
from tuneline.licenses import stated as metadata
from tuneline.licenses.rules import NONE, find_rule, normalise, table
from tuneline.models.base_model import license_of_text

_LONGEST_NAME = 60
_SECONDS = 120.0


@dataclass(frozen=True)
class PackageLicense:
    """A package's licence."""

    name: str
    version: str
    license: str  # SPDX id or expression, or what the package says instead
    read_from: str


@dataclass(frozen=True)
class Environment:
    """The packages of one environment."""

    prefix: str
    packages: list[PackageLicense]

    def has(self, package: str) -> bool:
        """Return True if a package is in it."""
        return any(_plain(found.name) == _plain(package) for found in self.packages)


def installed(python: str | None = None, stated: Mapping[str, str] | None = None) -> Environment:
    """Read the packages of an environment."""
    if python is None:
        raw: dict[str, Any] = {"prefix": sys.prefix, "packages": metadata.stated_licenses()}
    else:
        raw = _asked(python)
    known = {_plain(name): (p.license, p.source) for name, p in table().packages.items()}
    for name, given in (stated or {}).items():
        known[_plain(name)] = given, "governance.package_licenses"
    return Environment(raw["prefix"], [_package(entry, known) for entry in raw["packages"]])


def _asked(python: str) -> dict[str, Any]:
    command = [python, "-I", str(metadata.__file__)]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=_SECONDS)
        found: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise TunelineError(f"{python} does not list its packages: {error}") from None
    return found


def _package(entry: Mapping[str, Any], known: Mapping[str, tuple[str, str]]) -> PackageLicense:
    license_id, source = read(entry)
    if license_id == NONE and _plain(entry["name"]) in known:
        given, source = known[_plain(entry["name"])]
        license_id = normalise(given)
    return PackageLicense(entry["name"], entry["version"], license_id, source)


def read(entry: Mapping[str, Any]) -> tuple[str, str]:
    """Return a package's licence and where its metadata state it."""
    if entry["expression"]:
        return entry["expression"], "License-Expression"
    field = (entry["license"] or "").strip()
    # Some packages put the whole licence text there; its first line names it.
    named = normalise(field.splitlines()[0] if field else None)
    if named != NONE and find_rule(named):
        return named, "License"
    classified = [normalise(name) for name in entry["classifiers"] if name != "OSI Approved"]
    if classified:
        return " AND ".join(classified), "classifier"
    from_text = next(filter(None, map(license_of_text, [field, *entry["texts"]])), None)
    if from_text is not None:
        return normalise(from_text), "the text of its licence"
    if named != NONE:
        return named[:_LONGEST_NAME], "License"
    return NONE, "no licence in the metadata"


def _plain(name: str) -> str:
    """Return a package's name in the form in which PEP 503 compares names."""
    return name.lower().replace("_", "-").replace(".", "-")
