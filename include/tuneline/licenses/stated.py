"""Print what every installed distribution states of its licence, as JSON.

Only the standard library is used, so that an engine's own Python can run this file:
`python stated.py`. Fields and their order of trust are those of PEP 639.
"""

import json
import sys
from importlib import metadata
from typing import Any

# The first words of a licence text name it.
_TEXT_CHARACTERS = 600


def stated_licenses() -> list[dict[str, Any]]:
    """Return name, version and every statement on the licence, sorted by name."""
    found: dict[str, dict[str, Any]] = {}
    for package in metadata.distributions():
        name = package.metadata["Name"]
        if not name:
            continue
        found.setdefault(
            name.lower(),
            {
                "name": name,
                "version": package.version,
                "expression": (package.metadata.get_all("License-Expression") or [None])[0],
                "license": (package.metadata.get_all("License") or [None])[0],
                "classifiers": [
                    line.rpartition(" :: ")[2]
                    for line in package.metadata.get_all("Classifier") or []
                    if line.startswith("License ::")
                ],
                "texts": _texts(package),
            },
        )
    return [found[name] for name in sorted(found)]


def _texts(package: metadata.Distribution) -> list[str]:
    """Return the beginnings of the licence files that the metadata name."""
    texts = []
    for name in package.metadata.get_all("License-File") or []:
        for place in (f"licenses/{name}", name):
            text = package.read_text(place)
            if text:
                texts.append(text[:_TEXT_CHARACTERS])
                break
    return texts


if __name__ == "__main__":
    json.dump({"prefix": sys.prefix, "packages": stated_licenses()}, sys.stdout)
