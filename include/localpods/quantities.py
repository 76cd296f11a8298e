"""Kubernetes quantities: `500m`, `1.5`, `2Gi`, `1e9`."""

from __future__ import annotations

import re
from decimal import Decimal

_SCALES = {
    "": Decimal(1),
    **{letter: Decimal(1000) ** power for letter, power in zip("num", (-3, -2, -1), strict=True)},
    **{letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", 1)},
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", 1)},
}
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:([eE][+-]?\d+)|([A-Za-z]*))")


def parse_quantity(value: object) -> Decimal:
    """Read a quantity.

    Args:
        value: a string such as `500m` or `2Gi`, or a number.

    Returns:
        The amount in units (CPUs, bytes, devices).

    Raises:
        ValueError: if the value is not a quantity.
    """
    match = _QUANTITY.fullmatch(str(value).strip())
    if match is None or (match.group(3) or "") not in _SCALES:
        raise ValueError(f"{value!r} is not a quantity such as 500m, 2 or 4Gi")
    number, exponent, suffix = match.groups()
    return Decimal(number + (exponent or "")) * _SCALES[suffix or ""]
