"""The verdict of an item: the worse of its step, its gate and the final audit, then waivers.

A critical item that fails, or was not run though its turn came, stops the release.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tuneline.catalogue import ITEMS, Item, Severity, get_item
from tuneline.errors import UserError
from tuneline.evidence import Evidence, Measurement, Record, Verdict, conclude, worse
from tuneline.run import Run
from tuneline.store import NotThere


@dataclass(frozen=True)
class ItemStatus:
    """What the checklist says of one item."""

    item: str
    phase: str
    severity: str
    verdict: Verdict
    summary: str
    because: str

    @property
    def stops_release(self) -> bool:
        """Whether this verdict refuses promotion."""
        return self.severity == Severity.CRITICAL and self.verdict in (
            Verdict.FAIL,
            Verdict.NOT_RUN,
        )

    def as_dict(self) -> dict[str, Any]:
        """The row of `tuneline checklist --json`."""
        return asdict(self)


def status(run: Run, item_id: str) -> ItemStatus:
    """The status of one item of a run.

    Raises:
        UserError: no such item, or a file of the run is damaged.
    """
    item = get_item(item_id)
    evidence = run.find_evidence(item.id)
    if evidence is None:
        return _status(item, Verdict.NOT_RUN, "not run", "the step left no evidence")
    verdict, reasons = evidence.verdict, _broken(evidence.measurements)
    summary = evidence.summary
    for verdict_too, name, why in _second_opinions(run, item):
        if worse(verdict, verdict_too) != verdict:
            verdict = verdict_too
            summary = f"{evidence.summary} (but {name}: {why})"
        if verdict_too in (Verdict.FAIL, Verdict.WARN):
            reasons.append(f"{name}: {why}")
    waiver = _waivers(run).get(item.id)
    if waiver and verdict in (Verdict.FAIL, Verdict.WARN):
        return _status(
            item,
            Verdict.WAIVED,
            summary,
            f"waived by {waiver['by']}: {waiver['reason']} (would be {verdict})",
        )
    return _status(item, verdict, summary, "; ".join(reasons) or "every limit holds")


def checklist(run: Run) -> list[ItemStatus]:
    """The 25 rows of a run; items that were not run say what stood in the way."""
    rows: list[ItemStatus] = []
    stopper: str | None = None
    for row in (status(run, item.id) for item in ITEMS):
        rows.append(row)
        if row.verdict == Verdict.FAIL and row.severity == Severity.CRITICAL and not stopper:
            stopper = row.item
    if stopper:
        return [_blame(row, stopper) for row in rows]
    return rows


def check_item(run_uri: str, item_id: str) -> ItemStatus:
    """The status of an item, for the check task that follows its pod."""
    return status(Run.open(run_uri), item_id)


def _blame(row: ItemStatus, stopper: str) -> ItemStatus:
    if row.verdict != Verdict.NOT_RUN:
        return row
    return ItemStatus(
        **{**asdict(row), "because": f"{stopper} failed and stopped the run before it"}
    )


def _status(item: Item, verdict: Verdict, summary: str, because: str) -> ItemStatus:
    return ItemStatus(item.id, item.phase, item.severity, verdict, summary, because)


def _broken(measurements: list[Measurement]) -> list[str]:
    return [
        f"{m.name} is {_shown(m.value)}, must be {m.rule} {_shown(m.limit)} {m.unit}".rstrip()
        for m in measurements
        if m.ok is False
    ]


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _second_opinions(run: Run, item: Item) -> list[tuple[Verdict, str, str]]:
    """What the gate and the final audit say of an item."""
    opinions: list[tuple[Verdict, str, str]] = []
    gate = _read_json(run, run.step_key(item.id, "gate.json"))
    if gate is not None:
        opinions.append((Verdict(gate["verdict"]), "the gate", str(gate["summary"])))
    audit = _final_audit(run)
    about = [m for m in audit.measurements if m.name.startswith(item.id + ".")] if audit else []
    if about:
        why = "; ".join(_broken(about)) or "every limit holds"
        opinions.append((conclude(about), "the final audit", why))
    return opinions


def _final_audit(run: Run) -> Evidence | Record | None:
    try:
        return run.entry("final_audit")
    except UserError:
        return None


def _waivers(run: Run) -> dict[str, Mapping[str, Any]]:
    """The waivers that count: a critical one only when a person approved it in Airflow."""
    document = _read_json(run, run.key("waivers.json")) or {"waivers": []}
    return {
        waiver["item"]: waiver
        for waiver in document["waivers"]
        if waiver.get("by")
        and (
            get_item(waiver["item"]).severity != Severity.CRITICAL
            or waiver.get("critical_approved_by")
        )
    }


def _read_json(run: Run, key: str) -> Any:
    try:
        return json.loads(run.store.get_bytes(key))
    except NotThere:
        return None
