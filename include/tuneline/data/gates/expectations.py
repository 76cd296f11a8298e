"""Run suites of expectations through Great Expectations 1.x, and keep its Data Docs.

Great Expectations reports some failures as a success, so the number of expectations that ran is
checked; missing columns, empty tables and suites without rules fail; and an expectation that raised
counts as failed whatever its severity.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from tuneline.data.gates.suites import Suite
from tuneline.evidence import Breach, Measurement, Verdict, measure, worse
from tuneline.machine.workers import HERE, Engine
from tuneline.store import Store

if TYPE_CHECKING:
    from tuneline.machine.spark import Spark

# Great Expectations keeps its context once per process.
_ONE_AT_A_TIME = threading.Lock()
INDEX = "index.html"
# Up to this number of rows pandas is faster: a small suite takes Spark seconds of jobs.
LEAST_ON_SPARK = 1_000_000


class Failure(NamedTuple):
    """A broken expectation, and what it measured, if it limits a column."""

    text: str
    measured: Measurement | None = None


def validate(
    suites: Sequence[Suite], root: Path, problems: Sequence[str] = (), engine: Engine = HERE
) -> tuple[Verdict, list[Failure], int]:
    """Run suites, one call at a time: the verdict, each broken expectation, the number checked.

    `root` gets the Data Docs; with `problems` nothing is run.
    """
    problems = [*problems, *(f"{s.name}: nothing is expected" for s in suites if not s.rules)]
    problems += [f"{s.name}: the table has no rows" for s in suites if not len(s.frame)]
    if problems or not suites:
        return Verdict.FAIL, list(map(Failure, problems or ["the gate has nothing to check"])), 0
    with _ONE_AT_A_TIME:
        return _validated(suites, root, engine)


def store_docs(store: Store, folder: str, root: Path) -> str | None:
    """Replace stored Data Docs by those in `root`, if any; return their address."""
    pages = sorted(root.glob("*.html"))
    if not pages:
        return None
    links = "".join(f'<li><a href="{page.name}">{page.stem}</a></li>' for page in pages)
    (root / INDEX).write_text(f"<!doctype html><title>Data Docs</title><ul>{links}</ul>")
    store.delete_prefix(folder)
    for page in [*pages, root / INDEX]:
        store.put_file(f"{folder}/{page.name}", page)
    return store.uri_of(f"{folder}/{INDEX}")


def _validated(
    suites: Sequence[Suite], root: Path, engine: Engine
) -> tuple[Verdict, list[Failure], int]:
    # Version 1.24 sends nothing, others may.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.exceptions.exceptions import GreatExpectationsError

    root.mkdir(parents=True, exist_ok=True)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    verdict, failures, count = Verdict.PASS, list[Failure](), 0
    for suite in suites:
        try:
            result = _run_suite(gx, context, suite, engine)
        except (TypeError, ValueError, GreatExpectationsError) as error:
            # Some expectations give results that can't be stored, such as one on quantiles.
            verdict = Verdict.FAIL
            failures.append(
                Failure(f"{suite.name}: its expectations could not be checked: {error}")
            )
            continue
        (root / f"{suite.name}.html").write_text(_page(result))
        for check in result.results:
            count += 1
            if not check.success:
                verdict = worse(verdict, Verdict.WARN if _warns(check) else Verdict.FAIL)
                failures.append(Failure(_describe(suite.name, check), _measured(suite, check)))
        ran, rules = len(result.results), len(suite.rules)
        if ran != rules:
            verdict = Verdict.FAIL
            failures.append(Failure(f"{suite.name}: {ran} of {rules} expectations ran"))
    return verdict, failures, count


def _run_suite(gx: Any, context: Any, suite: Suite, engine: Engine) -> Any:
    frame = _on_spark(suite, engine)
    sources = context.data_sources
    if frame is None:
        source, frame = sources.add_or_update_pandas("audit"), suite.frame
    else:
        source = sources.add_or_update_spark("audit on spark")
    asset = source.add_dataframe_asset(suite.name)
    batch = asset.add_batch_definition_whole_dataframe("all rows")
    expectations = [
        getattr(gx.expectations, rule.kind)(**rule.arguments, severity=rule.severity)
        for rule in suite.rules
    ]
    context.suites.add_or_update(gx.ExpectationSuite(name=suite.name, expectations=expectations))
    # Read back: an expectation that the store has lost would never be checked.
    stored = context.suites.get(suite.name)
    definition = context.validation_definitions.add_or_update(
        gx.ValidationDefinition(name=suite.name, data=batch, suite=stored)
    )
    checkpoint = context.checkpoints.add_or_update(
        gx.Checkpoint(name=suite.name, validation_definitions=[definition], result_format="BASIC")
    )
    return next(iter(checkpoint.run({"dataframe": frame}).run_results.values()))


def _on_spark(suite: Suite, engine: Engine) -> Any:
    """Return a large table as a data frame of Spark; None also if a column is of two types."""
    import pyarrow as pa

    if engine is HERE or len(suite.frame) < LEAST_ON_SPARK:
        return None
    try:
        table = pa.Table.from_pandas(suite.frame, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None
    return cast("Spark", engine).frame(table)


def _page(result: Any) -> str:
    import numpy as np
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer

    with np.printoptions(legacy="1.25"):  # it renders numbers by their repr
        return str(_view().render(ValidationResultsPageRenderer().render(result)))


@cache
def _view() -> Any:
    """Return what renders pages, made once: each one compiles all its templates anew."""
    from great_expectations.render.view.view import DefaultJinjaPageView

    return DefaultJinjaPageView()


def _warns(check: Any) -> bool:
    severity = str(getattr(check.expectation_config.severity, "value", "critical"))
    return severity == "warning" and not _raised(check)


def _raised(check: Any) -> bool:
    """Return True if an expectation could not be computed, as on a missing column."""
    info = check.exception_info or {}
    # Either one entry, or one for every metric that raised.
    entries = [info, *(entry for entry in info.values() if isinstance(entry, dict))]
    return any(entry.get("raised_exception") for entry in entries)


def _measured(suite: Suite, check: Any) -> Measurement | None:
    """Return a column's broken limit as a measurement; None of another expectation."""
    limits = check.expectation_config.kwargs
    column, high = limits.get("column"), limits.get("max_value")
    if column is None or _raised(check) or {"min_value", "max_value"}.isdisjoint(limits):
        return None
    # A mean or a sum has one value; each value of a column may have a limit too.
    one, values = check.result.get("observed_value"), suite.frame[column]
    breach: Breach = "warn" if _warns(check) else "fail"
    most = values.max() if one is None else one
    if high is not None and most > high:
        return measure(column, most, "", "<=", high, on_breach=breach)
    least = values.min() if one is None else one
    return measure(column, least, "", ">=", limits.get("min_value"), on_breach=breach)


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
