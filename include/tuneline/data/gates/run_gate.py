"""The gates of the data phase: derive each item's verdict again from its audit table.

Great Expectations 1.x checks small tables of measures, without any text. A gate that disagrees
with its step is a failure in itself. Great Expectations reports some failures as a success, so
the number of expectations that ran is checked; missing columns, empty tables and suites without
rules fail; and an expectation that raised counts as failed whatever its severity.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneline.artifacts.data import AUDIT, REJECTED
from tuneline.catalogue import DATA_ORDER, data_item_before
from tuneline.data.gates.removal import removal_suites
from tuneline.data.gates.suites import SUITES, GateInput, Suite
from tuneline.data.pii_scrubbing import CANARIES, REVIEW
from tuneline.errors import UserError
from tuneline.evidence import Evidence, Verdict, worse
from tuneline.failures import ended_by_error
from tuneline.run import Run

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "tuneline/gate/1"
DOCS = "data_docs"
# Without fonts and animations of the docs: megabytes that nobody needs to read a table.
_DOC_ENDINGS = (".html", ".css")
# Great Expectations keeps its context and its YAML reader once per process.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class GateResult:
    """The result of a gate.

    Attributes:
        item: the item.
        verdict: the verdict by the audit table; `fail` if the step disagrees.
        step_verdict: the step's own verdict.
        agrees: True if both are the same.
        summary: the failures in one line, or the number of expectations that hold.
        expectations: number of expectations checked.
        failures: each broken expectation, as text.
        docs: address of the Data Docs.
    """

    item: str
    verdict: Verdict
    step_verdict: Verdict
    agrees: bool
    summary: str
    expectations: int
    failures: list[str] = field(default_factory=list)
    docs: str | None = None


def run_gate(run: Run, item: str) -> GateResult:
    """Check a data item's output and write `gate.json` and the Data Docs beside it.

    Args:
        run: the run.
        item: a data item that has been run.

    Raises:
        UserError: if the item is not a data item, or has not been run.
    """
    if item not in SUITES:
        raise UserError(f"{item} has no gate; the items with one are {', '.join(DATA_ORDER)}")
    entry = run.find_evidence(item)
    if entry is None:
        raise UserError(f"{item} has not been run in {run.uri}; run it before its gate")
    with tempfile.TemporaryDirectory(prefix="tuneline-gate-") as folder:
        root = Path(folder)
        tables, problems = _tables(run, entry, root)
        stored = next((ref.rows for ref in entry.artifacts if ref.name == REJECTED), None)
        if ended_by_error(entry):
            problems = [f"{item} ended with an error, so that there is nothing to check"]
        elif stored is None:
            problems.append(f"{item} stored no {REJECTED}")
        suites: list[Suite] = []
        if not problems and stored is not None:
            given = GateInput(
                tables,
                _came_in(run, item, root),
                stored,
                {m.name: m.value for m in entry.measurements},
                run.config,
            )
            try:
                suites = [*SUITES[item](given), *removal_suites(item, given)]
            except KeyError as error:
                problems.append(f"the tables of {item} lack the column {error.args[0]}")
        with _ONE_AT_A_TIME:
            verdict, failures, count = _validate(suites, root / "gx", problems)
        docs = _store_docs(run, item, root / "gx")
    result = _judge(entry, verdict, failures, count, docs)
    document = {"schema": SCHEMA, **asdict(result)}
    run.store.put_bytes(
        run.step_key(item, "gate.json"), json.dumps(document, indent=1, ensure_ascii=False).encode()
    )
    return result


def _judge(
    entry: Evidence, verdict: Verdict, failures: list[str], count: int, docs: str | None
) -> GateResult:
    step = Verdict.PASS if entry.verdict == Verdict.NOT_APPLICABLE else entry.verdict
    agrees = step == verdict
    if not agrees:
        failures = [*failures, f"the step says {entry.verdict}, its audit table says {verdict}"]
        verdict = worse(verdict, Verdict.FAIL)
    summary = "; ".join(failures) or f"{count} expectations of the audit table hold"
    return GateResult(entry.item, verdict, entry.verdict, agrees, summary, count, failures, docs)


def _tables(run: Run, entry: Evidence, root: Path) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Fetch the item's tables; return them with a list of what is missing."""
    tables, problems = {}, []
    for name in _names(entry):
        frame = _fetch(run, entry, name, root)
        if frame is None:
            problems.append(f"{entry.item} left no {name}")
            continue
        if not len(frame):
            problems.append(f"{name} has no rows")
        tables[name] = frame
    return tables, problems


def _names(entry: Evidence) -> list[str]:
    """Return the names of the tables of an item; a review is there only if one was given."""
    if entry.item != "pii_scrubbing":
        return [AUDIT]
    left = {ref.name for ref in entry.artifacts}
    return [AUDIT, CANARIES, *([REVIEW] if REVIEW in left else [])]


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


def _validate(
    suites: Sequence[Suite], root: Path, problems: list[str]
) -> tuple[Verdict, list[str], int]:
    """Run suites through Great Expectations.

    Returns:
        The verdict, each broken expectation as text, and the number that were checked.
    """
    problems = [*problems, *(f"{s.name}: nothing is expected" for s in suites if not s.rules)]
    problems += [f"{s.name}: the table has no rows" for s in suites if not len(s.frame)]
    if problems or not suites:
        return Verdict.FAIL, problems or ["the gate has nothing to check"], 0
    # Version 1.24 sends nothing, others may.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.exceptions.exceptions import GreatExpectationsError

    root.mkdir(parents=True, exist_ok=True)
    context = gx.get_context(mode="file", project_root_dir=str(root))
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_or_update_pandas("audit")
    verdict, failures, count = Verdict.PASS, [], 0
    for suite in suites:
        try:
            result = _run_suite(gx, context, source, suite)
        except (TypeError, ValueError, GreatExpectationsError) as error:
            # Some expectations give results that can't be stored, such as one on quantiles.
            verdict = Verdict.FAIL
            failures.append(f"{suite.name}: its expectations could not be checked ({error})")
            continue
        for check in result.results:
            count += 1
            if not check.success:
                severity = str(getattr(check.expectation_config.severity, "value", "critical"))
                warns = severity == "warning" and not _raised(check)
                found = Verdict.WARN if warns else Verdict.FAIL
                verdict = worse(verdict, found)
                failures.append(_describe(suite.name, check))
        if len(result.results) != len(suite.rules):
            verdict = Verdict.FAIL
            failures.append(
                f"{suite.name}: {len(result.results)} of {len(suite.rules)} expectations ran"
            )
    context.build_data_docs()
    return verdict, failures, count


def _run_suite(gx: Any, context: Any, source: Any, suite: Suite) -> Any:
    asset = source.add_dataframe_asset(suite.name)
    batch = asset.add_batch_definition_whole_dataframe("all rows")
    expectations = [
        getattr(gx.expectations, rule.kind)(**rule.arguments, severity=rule.severity)
        for rule in suite.rules
    ]
    context.suites.add_or_update(gx.ExpectationSuite(name=suite.name, expectations=expectations))
    # Read back: an expectation lost on its way to disk would never be checked.
    stored = context.suites.get(suite.name)
    definition = context.validation_definitions.add_or_update(
        gx.ValidationDefinition(name=suite.name, data=batch, suite=stored)
    )
    checkpoint = context.checkpoints.add_or_update(
        gx.Checkpoint(name=suite.name, validation_definitions=[definition], result_format="BASIC")
    )
    outcome = checkpoint.run(batch_parameters={"dataframe": suite.frame})
    return next(iter(outcome.run_results.values()))


def _raised(check: Any) -> bool:
    """Return True if an expectation could not be computed, as on a missing column."""
    info = check.exception_info or {}
    # Either one entry, or one for every metric that raised.
    entries = [info, *(entry for entry in info.values() if isinstance(entry, dict))]
    return any(entry.get("raised_exception") for entry in entries)


def _describe(suite: str, check: Any) -> str:
    """Describe a broken expectation: its table, rule, limits and the observed value."""
    config = check.expectation_config
    rule = config.type.removeprefix("expect_").replace("_", " ")
    arguments = {
        key: value
        for key, value in config.kwargs.items()
        if key not in ("batch_id", "column") and value is not None
    }
    limits = ", ".join(f"{key} {value}" for key, value in arguments.items())
    column = config.kwargs.get("column")
    observed = check.result.get("observed_value")
    if observed is None and "unexpected_count" in check.result:
        observed = f"{check.result['unexpected_count']} rows otherwise"
    if observed is None:
        observed = "it could not be computed"
    where = f"{suite}.{column}" if column else suite
    return f"{where}: {rule} ({limits}): {observed}"


def _store_docs(run: Run, item: str, root: Path) -> str | None:
    """Store the Data Docs; return the address of their first page."""
    site = root / "gx" / "uncommitted" / "data_docs" / "local_site"
    if not site.is_dir():
        return None
    folder = run.key("data", DOCS, item)
    run.store.delete_prefix(folder)
    for path in sorted(site.rglob("*")):
        if path.is_file() and path.suffix in _DOC_ENDINGS:
            run.store.put_file(f"{folder}/{path.relative_to(site).as_posix()}", path)
    return run.store.uri_of(f"{folder}/index.html")
