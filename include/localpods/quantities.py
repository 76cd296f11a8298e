"""Kubernetes quantities: `500m`, `1.5`, `2Gi`, `1e9`."""

from __future__ import annotations

import re
from decimal import Decimal

_SCALES = {
    "": Decimal(1),
    "n": Decimal(10) ** -9,
    "u": Decimal(10) ** -6,
    "m": Decimal(10) ** -3,
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15,
    "E": Decimal(10) ** 18,
    "Ki": Decimal(2) ** 10,
    "Mi": Decimal(2) ** 20,
    "Gi": Decimal(2) ** 30,
    "Ti": Decimal(2) ** 40,
    "Pi": Decimal(2) ** 50,
    "Ei": Decimal(2) ** 60,
}
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:([eE][+-]?\d+)|([A-Za-z]*))")


def parse_quantity(value: object) -> Decimal:
    """Read a quantity.

    Args:
        value: A text such as `500m` or `2Gi`, or a plain number.

    Returns:
        The amount in units (CPUs, bytes, devices).

    Raises:
        ValueError: The value is no quantity.
    """
    match = _QUANTITY.fullmatch(str(value).strip())
    if match is None or (match.group(3) or "") not in _SCALES:
        raise ValueError(f"{value!r} is not a quantity such as 500m, 2 or 4Gi")
    number, exponent, suffix = match.groups()
    return Decimal(number + (exponent or "")) * _SCALES[suffix or ""]
