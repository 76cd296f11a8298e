"""The expectations on the share of rows that a data item takes out, over all and by class."""

from __future__ import annotations

from tuneline.artifacts.data import AUDIT
from tuneline.data.gates.suites import GateInput, Suite, between, mean
from tuneline.data.removal.levels import ASKED_FOR, levels_of


def removal_suites(item: str, given: GateInput) -> list[Suite]:
    """Return the suites on what an item took out; rows that a setting asks for are left out."""
    levels = levels_of(item, given.config.data)
    audit = given.tables[AUDIT]
    frame = audit.loc[~audit["reason"].isin(ASKED_FOR), ["class", "kept"]]
    if not len(frame):
        return []
    removed = 1 - frame["kept"].astype(int)
    # A column for each rule: two rules of one kind on one column would replace each other.
    frame = frame.assign(removed=removed, removed_at_most=removed)
    suites = [
        Suite(
            "removed_rows",
            frame,
            [
                mean("removed", 0, levels.warn, severity="warning"),
                mean("removed_at_most", 0, levels.fail),
            ],
        )
    ]
    classes = frame.groupby("class")["removed"].agg(["mean", "count"]).reset_index()
    classes = classes[classes["count"] >= levels.least]
    if len(classes):
        classes = classes.assign(share=classes["mean"], share_at_most=classes["mean"])
        rules = [
            between("share", 0, levels.class_warn, severity="warning"),
            between("share_at_most", 0, levels.class_fail),
        ]
        suites.append(Suite("removed_rows_of_classes", classes, rules))
    return suites
