"""The gates of the data phase: derive each item's verdict again from its audit table."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneline.artifacts.data import AUDIT, DATA_DOCS, REJECTED
from tuneline.catalogue import DATA_ORDER, data_item_before
from tuneline.data.engine import engine_of, reachable
from tuneline.data.gates.expectations import Failure, store_docs, validate
from tuneline.data.gates.suites import SUITES, GateInput, Suite, removal_suites
from tuneline.data.pii_scrubbing import CANARIES, REVIEW
from tuneline.errors import UserError
from tuneline.evidence import Evidence, Verdict, worse
from tuneline.failures import ended_by_error
from tuneline.machine.workers import HERE
from tuneline.run import Run

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "tuneline/gate/1"


@dataclass(frozen=True)
class GateResult:
    """The result of a gate; its verdict is `fail` if the step disagrees with the audit table.

    Attributes:
        broken: the measurement of each failure; null if it is not the limit of a column.
    """

    item: str
    verdict: Verdict
    step_verdict: Verdict
    agrees: bool
    summary: str
    expectations: int
    failures: list[str] = field(default_factory=list)
    broken: list[dict[str, Any] | None] = field(default_factory=list)
    docs: str | None = None


def run_gate(run: Run, item: str) -> GateResult:
    """Write `gate.json` and Data Docs of an item; UserError if it has no gate, or was not run."""
    if item not in SUITES:
        raise UserError(f"{item} has no gate; the items with one are {', '.join(DATA_ORDER)}")
    entry = run.find_evidence(item)
    if entry is None:
        raise UserError(f"{item} has not been run in {run.uri}; run it before its gate")
    with tempfile.TemporaryDirectory(prefix="tuneline-gate-") as folder:
        root = Path(folder)
        suites, problems = _suites(run, entry, root)
        engine = engine_of(run.config.data) if reachable() else HERE
        verdict, found, count = validate(suites, root / "gx", problems, engine)
        docs = store_docs(run.store, run.key("data", DATA_DOCS, item), root / "gx")
    step = Verdict.PASS if entry.verdict == Verdict.NOT_APPLICABLE else entry.verdict
    agrees = step == verdict
    if not agrees:
        text = f"the step says {entry.verdict}, its audit table says {verdict}"
        found, verdict = [*found, Failure(text)], worse(verdict, Verdict.FAIL)
    texts = [failure.text for failure in found]
    summary = "; ".join(texts) or f"{count} expectations of the audit table hold"
    broken = [m.model_dump(mode="json") if m else None for _, m in found]
    result = GateResult(item, verdict, entry.verdict, agrees, summary, count, texts, broken, docs)
    document = {"schema": SCHEMA, **asdict(result)}
    run.store.put_bytes(
        run.step_key(item, "gate.json"), json.dumps(document, indent=1, ensure_ascii=False).encode()
    )
    return result


def _suites(run: Run, entry: Evidence, root: Path) -> tuple[list[Suite], list[str]]:
    """Fetch the item's tables; return what they must satisfy, and what is wrong already."""
    if ended_by_error(entry):
        return [], [f"{entry.item} ended with an error, so that there is nothing to check"]
    names, problems = [AUDIT], list[str]()
    tables: dict[str, pd.DataFrame] = {}
    if entry.item == "pii_scrubbing":
        # A review is there only if one was given.
        left = {ref.name for ref in entry.artifacts}
        names += [CANARIES, *({REVIEW} & left)]
    for name in names:
        frame = _fetch(run, entry, name, root)
        if frame is None:
            problems.append(f"{entry.item} left no {name}")
        else:
            tables[name] = frame
            if not len(frame):
                problems.append(f"{name} has no rows")
    stored = next((ref.rows for ref in entry.artifacts if ref.name == REJECTED), None)
    if stored is None:
        problems.append(f"{entry.item} stored no {REJECTED}")
    if problems or stored is None:
        return [], problems
    came_in = _came_in(run, entry.item, root)
    measured = {m.name: m.value for m in entry.measurements}
    given = GateInput(tables, came_in, stored, measured, run.config)
    try:
        return [*SUITES[entry.item](given), *removal_suites(entry.item, given)], []
    except KeyError as error:
        return [], [f"the tables of {entry.item} lack the column {error.args[0]}"]


def _fetch(run: Run, entry: Evidence, name: str, root: Path) -> pd.DataFrame | None:
    import pyarrow.parquet as pq

    for ref in entry.artifacts:
        if ref.name == name:
            path = root / entry.item / name
            run.store.get_file(run.store.key_of(ref.uri), path, sha256=ref.sha256)
            return pq.read_table(path).to_pandas()
    return None


def _came_in(run: Run, item: str, root: Path) -> frozenset[str] | None:
    """Return the ids of the rows that the item before kept."""
    step = data_item_before(item)
    if step is None:
        return None
    before = run.find_evidence(step)
    if before is None:
        raise UserError(f"{step} has not been run in {run.uri}; run it first")
    frame = _fetch(run, before, AUDIT, root)
    if frame is None:
        return frozenset()
    return frozenset(frame.loc[frame["kept"].astype(bool), "row_id"])
