"""Quantities as Kubernetes writes them."""

from __future__ import annotations

import re

from tuneline.errors import UserError


def quantity(text: str, setting: str = "pods.memory") -> int:
    """Return the bytes of a Kubernetes quantity (`8Gi`, `500M`, `1e9`)."""
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)([KMGT]i?|k)?", text.strip())
    if match is None:
        raise UserError(f"{setting} {text!r} is not a quantity; write it like 8Gi")
    unit = match.group(2) or ""
    base = 1024 if unit.endswith("i") else 1000
    power = "kmgt".index(unit[0].lower()) + 1 if unit else 0
    return int(float(match.group(1)) * base**power)
