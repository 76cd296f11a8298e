"""The catalogue has the 25 items of the checklist."""

from collections import Counter

import pytest

from tuneline.catalogue import ITEMS, get_item
from tuneline.errors import UserError


def test_25_items_in_five_phases():
    assert len({item.id for item in ITEMS}) == 25
    assert Counter(item.phase.value for item in ITEMS) == dict.fromkeys(
        ("data", "training", "evaluation", "deployment", "governance"), 5
    )


def test_severities():
    assert Counter(item.severity.value for item in ITEMS) == {
        "critical": 13,
        "recommended": 10,
        "optional": 2,
    }


def test_unknown_item_lists_the_known_ones():
    with pytest.raises(UserError, match=r"unknown item 'dedup'.*deduplication"):
        get_item("dedup")
