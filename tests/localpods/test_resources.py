"""Quantities."""

from decimal import Decimal

import pytest

from localpods.objects import parse_quantity


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("500m", Decimal("0.5")),
        (2, Decimal(2)),
        ("0.25", Decimal("0.25")),
        (".5", Decimal("0.5")),
        ("2Gi", Decimal(2 << 30)),
        ("1.5Ki", Decimal(1536)),
        ("3M", Decimal(3_000_000)),
        ("1e3", Decimal(1000)),
        ("1E", Decimal(10) ** 18),
    ],
)
def test_quantity(text: object, amount: Decimal) -> None:
    assert parse_quantity(text) == amount


@pytest.mark.parametrize("text", ["", "lots", "1 Gi", "-1", "1gi", "1e", None, "0x10"])
def test_what_is_no_quantity(text: object) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_quantity(text)
