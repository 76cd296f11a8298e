"""Read the licence of a model from the files beside it, the most binding source first."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

# A note that the resolver writes beside the files of a fetched model.
ORIGIN_FILE = "tuneline_origin.json"

# Hubs write licences in lower case, and name licences that SPDX does not list.
# SPDX keeps `LicenseRef-` for those: https://spdx.github.io/spdx-spec/v3.0.1/annexes/spdx-license-expressions/
_SPDX = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "isc": "ISC",
    "cc0-1.0": "CC0-1.0",
    "cc-by-4.0": "CC-BY-4.0",
    "cc-by-sa-4.0": "CC-BY-SA-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "cc-by-nc-sa-4.0": "CC-BY-NC-SA-4.0",
    "cc-by-nd-4.0": "CC-BY-ND-4.0",
    "gpl-3.0": "GPL-3.0-only",
    "agpl-3.0": "AGPL-3.0-only",
    "lgpl-3.0": "LGPL-3.0-only",
    "mpl-2.0": "MPL-2.0",
    "unlicense": "Unlicense",
    # SPDX allows no plus in a name.
    "openrail++": "LicenseRef-creativeml-openrail-plus-m",
}

# First words that identify a licence text without doubt.
_TEXTS = (
    (re.compile(r"Apache License,?\s+Version 2\.0", re.I), "Apache-2.0"),
    (re.compile(r"\bMIT License\b", re.I), "MIT"),
    (re.compile(r"Permission is hereby granted, free of charge, to any person", re.I), "MIT"),
    (re.compile(r"(?:^|\bCommons )Attribution 4\.0\s+International\b", re.I | re.M), "CC-BY-4.0"),
    (re.compile(r"LLAMA 4 COMMUNITY LICENSE", re.I), "LicenseRef-llama4"),
    (re.compile(r"LLAMA 3\.3 COMMUNITY LICENSE", re.I), "LicenseRef-llama3.3"),
    (re.compile(r"LLAMA 3\.2 COMMUNITY LICENSE", re.I), "LicenseRef-llama3.2"),
    (re.compile(r"LLAMA 3\.1 COMMUNITY LICENSE", re.I), "LicenseRef-llama3.1"),
    (re.compile(r"META LLAMA 3 COMMUNITY LICENSE", re.I), "LicenseRef-llama3"),
    (re.compile(r"LLAMA 2 COMMUNITY LICENSE", re.I), "LicenseRef-llama2"),
    (re.compile(r"Gemma Terms of Use", re.I), "LicenseRef-gemma"),
    (re.compile(r"Tongyi Qianwen RESEARCH LICENSE", re.I), "LicenseRef-tongyi-qianwen-research"),
    (re.compile(r"Tongyi Qianwen LICENSE", re.I), "LicenseRef-tongyi-qianwen"),
    (re.compile(r"Qwen RESEARCH LICENSE", re.I), "LicenseRef-qwen-research"),
    (re.compile(r"Qwen LICENSE AGREEMENT", re.I), "LicenseRef-qwen"),
    (re.compile(r"Mistral AI Research License", re.I), "LicenseRef-MRL-0.1"),
    (re.compile(r"Mistral AI Non-Production License", re.I), "LicenseRef-MNPL-0.1"),
    (re.compile(r"DEEPSEEK LICENSE AGREEMENT", re.I), "LicenseRef-deepseek"),
    (re.compile(r"Falcon 180B TII License", re.I), "LicenseRef-falcon-180b"),
    (re.compile(r"Falcon 2 11B TII License", re.I), "LicenseRef-falcon-2-11b"),
    (re.compile(r"TII Falcon LLM License Version 1\.0", re.I), "LicenseRef-falcon-llm-1.0"),
    (re.compile(r"TII Falcon(?:[- ]LLM)? License", re.I), "LicenseRef-falcon-llm-license"),
    (re.compile(r"BigScience RAIL License", re.I), "LicenseRef-bigscience-bloom-rail-1.0"),
    (re.compile(r"BigScience\s+Open\s?RAIL", re.I), "LicenseRef-bigscience-openrail-m"),
    (re.compile(r"BigCode\s+Open\s?RAIL", re.I), "LicenseRef-bigcode-openrail-m"),
    (re.compile(r"CreativeML\s+Open\s?RAIL\+\+", re.I), "LicenseRef-creativeml-openrail-plus-m"),
    (re.compile(r"CreativeML\s+Open\s?RAIL", re.I), "LicenseRef-creativeml-openrail-m"),
)
_TEXT_CHARACTERS = 2000


def license_of_text(text: str) -> str | None:
    """Return the SPDX identifier that the first words of a licence text give, None if none."""
    found = (name for pattern, name in _TEXTS if pattern.search(text[:_TEXT_CHARACTERS]))
    return next(found, None)


def to_spdx(name: str) -> str | None:
    """Return the SPDX identifier for a licence name as hubs and GGUF files write it.

    Returns:
        The identifier; `LicenseRef-…` for a licence that SPDX does not list; None for no name.
    """
    key = name.strip().lower()
    if key in ("", "other", "unknown", "none"):
        return None
    return _SPDX.get(key, "LicenseRef-" + re.sub(r"[^A-Za-z0-9.-]+", "-", key))


def read_license(directory: Path, config: dict[str, Any]) -> tuple[str | None, str]:
    """Read a model's licence.

    The sources in order: the resolver's note on the origin, the model card's front matter,
    config.json, a licence text.

    Returns:
        SPDX identifier or None, and its source (or the sources that name none).
    """
    origin = directory / ORIGIN_FILE
    if origin.is_file():
        noted = json.loads(origin.read_text(encoding="utf-8"))
        if noted.get("license"):
            return str(noted["license"]), str(noted["license_source"])
    card = _front_matter(directory / "README.md")
    if card.get("license"):
        return _of_card(card)
    if isinstance(config.get("license"), str):
        return to_spdx(config["license"]), "config.json: license"
    for path in sorted(directory.glob("LICEN[SC]E*")):
        identifier = license_of_text(path.read_text(encoding="utf-8", errors="replace"))
        if identifier is not None:
            return identifier, f"{path.name}: its text"
    return None, "not found in the origin note, README.md, config.json or a LICENSE file"


def _of_card(card: dict[str, Any]) -> tuple[str | None, str]:
    """Return the licence that a model card states, and the field that states it."""
    named = card["license"]
    if isinstance(named, list):
        # The hub does not say which of them binds, so all of them do.
        names = [to_spdx(str(name)) or "NOASSERTION" for name in named]
        return " AND ".join(names), "README.md: license"
    if str(named).lower() == "other" and card.get("license_name"):
        return to_spdx(str(card["license_name"])), "README.md: license_name"
    return to_spdx(str(named)), "README.md: license"


def _front_matter(path: Path) -> dict[str, Any]:
    """Return the YAML between the first two `---` lines of a model card; {} without any."""
    import yaml

    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    match = re.match(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", text, re.S)
    if not match:
        return {}
    try:
        document = yaml.safe_load(match.group(1))
    except yaml.YAMLError:
        return {}
    return document if isinstance(document, dict) else {}
