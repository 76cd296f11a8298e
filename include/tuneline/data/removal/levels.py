"""The levels at which the share of rows that a data item takes out warns and fails.

Step and gate both take their limits from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from tuneline.config import DataConfig
from tuneline.config.data import DataItem

# Reasons of rows that leave because a setting states how many rows are wanted.
ASKED_FOR = frozenset({"not_selected", "train_cap", "validation_cap", "holdout_cap"})
# Share of contradicting rows from which a better setting is proposed.
CONFLICT_SHARE = 0.05


@dataclass(frozen=True)
class Levels:
    """Shares of removed rows above which an item warns, or fails.

    Attributes:
        warn: share of all rows above which it warns.
        fail: share of all rows above which it fails.
        class_warn: share of one class above which it warns.
        class_fail: share of one class above which it fails.
        least: the number of rows from which a class is judged; in a smaller one a single row is
            too great a share.
    """

    warn: float
    fail: float
    class_warn: float
    class_fail: float
    least: int


def levels_of(item: str, config: DataConfig) -> Levels:
    """Return the levels of a data item.

    An older limit on the same rows (`max_rejected_share`, `max_too_long_share`) is the level at
    which its item fails, unless `removed_share_fail` names the item.
    """
    name = cast("DataItem", item)
    older: dict[DataItem, float] = {
        "schema_validation": config.max_rejected_share,
        "token_length_audit": config.max_too_long_share,
    }
    fail = {**older, **config.removed_share_fail}
    return Levels(
        config.removed_share_warn[name],
        fail[name],
        config.class_removed_share_warn[name],
        config.class_removed_share_fail[name],
        config.min_rows_per_class,
    )
