"""The expectations of each data gate on its item's audit table.

A column with a limit has the name of the step's measurement, if that states it too: a waiver of it
accepts the gate's value as well. A rule on kept rows reads a column that is null for the others:
expectations pass over nulls, and a rule on the number of kept rows makes sure that there are some.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tuneline.artifacts.data import AUDIT
from tuneline.config import PipelineConfig
from tuneline.data.balance.class_shares import TrainRow, figures_of
from tuneline.data.deduplication import HOLDOUT_SHARE, MAX_NEAR
from tuneline.data.pii.find.entities import scrubbed_entities, uncovered_languages
from tuneline.data.pii.measure.leak_estimate import (
    PER_ROWS,
    WEAK,
    canaries_of,
    decides,
    left_breach,
)
from tuneline.data.pii.measure.plants import group_entity, group_names
from tuneline.data.pii.review.review import PiiReview
from tuneline.data.pii_scrubbing import CANARIES, MAX_VALUES_LEFT, REVIEW
from tuneline.data.sources.streams import BROKEN_FILE
from tuneline.data.tables.removed_rows import ASKED_FOR, levels_of
from tuneline.data.tables.rows import HOLDOUT, SPLITS, base_id
from tuneline.statistics import count_times_odds, share_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Rule:
    """One expectation: its class in Great Expectations, and its arguments."""

    kind: str
    arguments: Mapping[str, Any]
    severity: str = "critical"


# The name of a value, the value, its limit, and what a breach does.
_Limit = tuple[str, float, float | None, str]


@dataclass(frozen=True)
class Suite:
    """A table and the rules that it must satisfy."""

    name: str
    frame: pd.DataFrame
    rules: Sequence[Rule]


@dataclass(frozen=True)
class GateInput:
    """An item's tables by name, and the ids that came in, None for the first item."""

    tables: Mapping[str, pd.DataFrame]
    came_in: frozenset[str] | None
    stored_rejects: int
    measured: Mapping[str, Any]
    config: PipelineConfig


def _within(
    kind: str, column: str, low: float | None, high: float | None, severity: str = "critical"
) -> Rule:
    return Rule(kind, {"column": column, "min_value": low, "max_value": high}, severity)


# Expect every value, the sum or the mean of a column between two limits, inclusive.
between = partial(_within, "ExpectColumnValuesToBeBetween")
total = partial(_within, "ExpectColumnSumToBeBetween")
mean = partial(_within, "ExpectColumnMeanToBeBetween")


def among(column: str, *values: Any) -> Rule:
    """Expect every value of a column to be one of these."""
    return Rule("ExpectColumnValuesToBeInSet", {"column": column, "value_set": list(values)})


def _kept_only(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Add `kept_<column>`: the column for kept rows (a missing value as "missing"), else null."""
    frame = frame.copy()
    for column in columns:
        values = frame[column].astype(object)
        values = values.where(values.notna(), "missing")
        frame[f"kept_{column}"] = values.where(frame["kept"], None)
    return frame


def _rows(given: GateInput) -> tuple[pd.DataFrame, list[Rule]]:
    """Return the audit table and the rules of every gate: rows are conserved, with reasons."""
    frame = given.tables[AUDIT].copy()
    kept, reasoned = frame["kept"].astype(bool), frame["reason"].notna()
    frame["kept"] = kept
    frame["rows_kept"] = kept.astype(int)
    frame["rejected_rows"] = (~kept & reasoned).astype(int)
    frame["rows_lost"] = (~kept & ~reasoned).astype(int)
    frame["kept_with_a_reason"] = (kept & reasoned).astype(int)
    rules = [
        Rule("ExpectTableRowCountToBeBetween", {"min_value": 1}),
        Rule("ExpectColumnValuesToNotBeNull", {"column": "row_id"}),
        Rule("ExpectColumnValuesToBeUnique", {"column": "row_id"}),
        total("rows_kept", 1, None),
        total("rejected_rows", given.stored_rejects, given.stored_rejects),
        total("rows_lost", 0, 0),
        total("kept_with_a_reason", 0, 0),
    ]
    if given.came_in is not None:
        ids = frame["row_id"].map(base_id)
        frame["came_in"] = ids.isin(given.came_in)
        frame["missing_rows"] = len(given.came_in - set(ids))
        rules += [among("came_in", True), between("missing_rows", 0, 0)]
    return frame, rules


def _schema_validation(given: GateInput) -> list[Suite]:
    frame, rules = _rows(given)
    frame = _kept_only(frame, "last_role", "tokens_equal", "mask_exact")
    frame["place"] = frame["source_file"] + ":" + frame["source_line"].astype(str)
    frame["rejected_share"] = frame["malformed"].where(frame["selected"].astype(bool))
    frame["broken_files"] = (frame["reason"] == BROKEN_FILE).astype(int)
    rows_in = given.measured.get("rows_in")
    rules += [
        Rule("ExpectTableRowCountToEqual", {"value": rows_in}),
        Rule("ExpectColumnValuesToBeUnique", {"column": "place"}),
        mean("rejected_share", 0, given.config.data.max_rejected_share),
        total("broken_files", 0, 0, severity="warning"),
        among("kept_last_role", "assistant"),
        among("kept_tokens_equal", True),
        among("kept_mask_exact", True),
    ]
    return [Suite("schema_validation", frame, rules)]


def _pii_scrubbing(given: GateInput) -> list[Suite]:
    data = given.config.data
    frame, rules = _rows(given)
    frame["kept_residual"] = (frame["residual_hits"] + frame["values_left"]).where(frame["kept"])
    frame["kept_torn"] = frame["torn_copies"].where(frame["kept"])
    changed = frame["hits"] > 0
    if changed.any():
        left = int((changed & (frame["values_left"] > 0)).sum())
        least = "rows_with_values_left_at_least"
        frame[least] = share_of(left, int(changed.sum())).lower
        rules.append(between(least, 0, MAX_VALUES_LEFT))
    frame["undeclared_language_share"] = frame["undeclared_language"]
    frame["uncovered_languages"] = len(uncovered_languages(data))
    severity = "critical" if data.undeclared_language_breach == "fail" else "warning"
    rules += [
        between("kept_residual", 0, 0),
        between("kept_torn", 0, 0),
        between("uncovered_languages", 0, 0, severity),
        mean("undeclared_language_share", 0, data.max_undeclared_language_share, severity),
    ]
    # A review of other data counts for nothing, of which the step warns.
    foreign = "review_rows_of_other_data"
    frame[foreign] = given.measured.get(foreign) or 0
    rules.append(between(foreign, 0, 0, severity="warning"))
    suites = [Suite("pii_scrubbing", frame, rules), *_canaries(given)]
    if REVIEW in given.tables:
        suites.append(_review(given))
    return suites


def _canaries(given: GateInput) -> list[Suite]:
    """Return the groups of canaries, and what they say is left in the rows."""
    data = given.config.data
    outcomes = given.tables[CANARIES].groupby("entity")["leaked"].agg(["sum", "count"])
    groups, rows = outcomes.reset_index(), len(given.tables[AUDIT])

    def found_of(entity: str) -> int:
        return int(given.measured.get(f"found_{entity}") or 0)

    groups["missing"] = [
        canaries_of(found_of(group_entity(group)) * PER_ROWS / rows, data) - count
        for group, _, count in groups.itertuples(index=False)
    ]
    expected = sorted(group_names(scrubbed_entities(data.pii_profile), data.languages))
    rules = [
        Rule("ExpectTableRowCountToEqual", {"value": len(expected)}),
        among("entity", *expected),
        between("missing", 0, 0),
    ]
    limits: list[_Limit] = []
    for group, leaked, count, _ in groups.itertuples(index=False):
        if data.pii_max_left is not None and not found_of(group_entity(group)):
            upper = share_of(int(leaked), int(count)).upper
            limits.append((f"leak_{group}_at_most", upper, WEAK, "warn"))
    for entity, summed in outcomes.groupby(group_entity).sum().iterrows():
        outcome = int(summed["sum"]), int(summed["count"])
        found = found_of(str(entity))
        left = count_times_odds(found, *outcome).upper * PER_ROWS / rows
        breach = left_breach(str(entity), found, *outcome, data)
        name = f"left_per_1000_rows_{entity}_at_most"
        limits.append((name, left, data.pii_max_left, breach))
    return [Suite("pii_canaries", groups, rules), _limits("pii_leaks", limits)]


def _review(given: GateInput) -> Suite:
    """Return what a person's review proves to be left, by the lower end of its interval."""
    table, data = given.tables[REVIEW], given.config.data
    missed = [[kind for kind in entry.split("+") if kind] for entry in table["missed"]]
    review = PiiReview(list(table["weight"]), list(table["stratum"]), missed)
    rows = int(given.tables[AUDIT]["kept"].sum())
    limits: list[_Limit] = []
    for entity in review.entities():
        breach = "fail" if decides(entity, data.pii_profile) else "warn"
        name = f"review_left_per_1000_rows_{entity}_at_least"
        lower = review.left_per_1000(entity, rows).lower
        limits.append((name, lower, data.pii_max_left, breach))
    return _limits("pii_review", limits)


def _limits(name: str, limits: Sequence[_Limit]) -> Suite:
    """Return a row of values, each of them at most its limit."""
    import pandas as pd

    rules = [Rule("ExpectTableRowCountToEqual", {"value": 1})]
    for column, _, limit, breach in limits:
        severity = "critical" if breach == "fail" else "warning"
        rules += [between(column, None, limit, severity)] if limit is not None else []
    values = {column: value for column, value, *_ in limits}
    return Suite(name, pd.DataFrame([{"limits": len(limits), **values}]), rules)


def _holdout_share(frame: pd.DataFrame, rows: pd.Series[bool]) -> list[Rule]:
    """Add the share of the hold-out among some rows, with its rules unless it is its own."""
    if frame["own_holdout"].astype(bool).any():
        return []
    held = frame["in_holdout"].where(rows)
    frame["holdout_share"] = frame["holdout_share_at_most"] = held
    low, high = HOLDOUT_SHARE
    return [mean("holdout_share", low, None), mean("holdout_share_at_most", None, high)]


def _deduplication(given: GateInput) -> list[Suite]:
    data = given.config.data
    frame, rules = _rows(given)
    frame = _kept_only(frame, "split")
    near = frame["cross_similarity"] >= data.near_duplicate_jaccard
    frame["cross_split_near_duplicates"] = (near & frame["kept"]).astype(int)
    for split in SPLITS:
        frame[f"in_{split}"] = (frame["kept_split"] == split).astype(int)
        rules.append(total(f"in_{split}", 1, None))
    own = frame["own_holdout"].astype(bool)
    rules += _holdout_share(frame, frame["kept"])
    # A hold-out file may repeat itself.
    for kind in ("kind", "kind_as_it_stands"):
        frame[f"kept_{kind}"] = frame[kind].where(frame["kept"] & ~own)
        rules.append(Rule("ExpectColumnValuesToBeUnique", {"column": f"kept_{kind}"}))
    frame["near_rows_that_differ"] = frame["near"].where(frame["kept"]).astype(float)
    sides = frame.loc[frame["kept"], ["conversation", "split"]].groupby("conversation")["split"]
    frame["torn"] = (frame["conversation"].map(sides.nunique()) > 1).astype(int)
    frame["own_rejected"] = (own & ~frame["kept"]).astype(int)
    frame["repeated_sentences_left"] = frame["repeated_sentence"]
    rules += [
        among("kept_split", *SPLITS),
        total("cross_split_near_duplicates", 0, 0),
        total("torn", 0, 0),
        total("own_rejected", 0, 0),
        mean("near_rows_that_differ", 0, MAX_NEAR, severity="warning"),
        total("repeated_sentences_left", 0, 0, severity="warning"),
    ]
    return [Suite("deduplication", frame, rules)]


def _token_length_audit(given: GateInput) -> list[Suite]:
    data = given.config.data
    frame, rules = _rows(given)
    limit = min(data.max_tokens, int(given.measured.get("limit") or 0))
    frame["kept_length"] = frame["kept_tokens"].where(frame["kept"]).astype(float)
    frame.loc[frame["kept"] & frame["kept_length"].isna(), "kept_length"] = float("inf")
    frame["over_limit_share"] = frame["over_limit"]
    rules += [
        between("kept_length", 1, limit),
        mean("over_limit_share", 0, data.max_too_long_share),
    ]
    return [Suite("token_length_audit", frame, rules)]


def _distribution_balancing(given: GateInput) -> list[Suite]:
    import pandas as pd

    data = given.config.data
    frame, rules = _rows(given)
    in_training = frame["split"] == "train"
    frame["train_rows"] = (in_training & frame["kept"]).astype(int)
    frame["kept_weight"] = frame["weight"].where(frame["kept"])
    rules += [total("train_rows", 1, None), between("kept_weight", 1, data.max_upsampling)]
    # Of the rows that came in: a class that is sampled down makes no hold-out too large.
    frame["in_holdout"] = (frame["split"] == HOLDOUT).astype(int)
    rules += _holdout_share(frame, frame["split"].notna())
    suites = [Suite("distribution_balancing", frame, rules)]
    grouped = not (in_training & frame["label"].notna()).any()
    names = frame["group" if grouped else "label"]
    train = frame[in_training & names.notna()]
    if len(train):
        edges = train["edge_case"].notna()
        columns = (names[train.index], train["kept"], train["weight"], edges)
        figures = figures_of([TrainRow(*row) for row in zip(*columns, strict=True)])
        shares = [
            between(
                name, limit if rule == ">=" else None, limit if rule == "<=" else None, "warning"
            )
            for name, rule, limit in figures.limits(data, grouped=grouped)
        ]
        shares.append(Rule("ExpectTableRowCountToEqual", {"value": 1}))
        suites.append(Suite("class_shares", pd.DataFrame([figures.values(data)]), shares))
    return suites


SUITES: dict[str, Callable[[GateInput], list[Suite]]] = {
    "schema_validation": _schema_validation,
    "pii_scrubbing": _pii_scrubbing,
    "deduplication": _deduplication,
    "token_length_audit": _token_length_audit,
    "distribution_balancing": _distribution_balancing,
}


def removal_suites(item: str, given: GateInput) -> list[Suite]:
    """Return the suites on what an item took out; rows that a setting asks for are left out."""
    levels = levels_of(item, given.config.data)
    audit = given.tables[AUDIT]
    frame = audit.loc[~audit["reason"].isin(ASKED_FOR), ["class", "kept"]]
    if not len(frame):
        return []
    removed = 1 - frame["kept"].astype(int)
    # A column for each rule: two rules of one kind on one column would replace each other.
    frame = frame.assign(removed_share=removed, removed_share_at_most=removed)
    rules = [
        mean("removed_share", 0, levels.warn, severity="warning"),
        mean("removed_share_at_most", 0, levels.fail),
    ]
    suites = [Suite("removed_rows", frame, rules)]
    classes = frame.groupby("class")["removed_share"].agg(["mean", "count"]).reset_index()
    classes = classes[classes["count"] >= levels.least]
    if len(classes):
        share = classes["mean"]
        classes = classes.assign(class_removed_share=share, class_removed_share_at_most=share)
        rules = [
            between("class_removed_share", 0, levels.class_warn, severity="warning"),
            between("class_removed_share_at_most", 0, levels.class_fail),
        ]
        suites.append(Suite("removed_rows_of_classes", classes, rules))
    return suites
