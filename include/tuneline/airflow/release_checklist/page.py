"""The tab of a run as HTML, from the template `page.html`, which escapes whatever it shows."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, Template

from tuneline.catalogue import ITEMS
from tuneline.evidence import Evidence, Verdict
from tuneline.governance.release.canary import told_of
from tuneline.governance.retraining.outcome import Outcome
from tuneline.run import Run
from tuneline.verdicts import ItemStatus, looser_limits


@cache
def _template() -> Template:
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return Environment(autoescape=True).from_string(text)


def render(run: Run, rows: Sequence[ItemStatus], evidence: Mapping[str, Evidence | None]) -> str:
    """Return the page of a run; while a step is running it is loaded again every ten seconds.

    Args:
        rows: the 25 rows of its checklist.
        evidence: evidence of each item, None for an item that was not run.
    """
    asked = run.config.governance.canary.share
    return _template().render(
        run=run,
        rows=rows,
        evidence=evidence,
        titles={item.id: item.title for item in ITEMS},
        tally=Counter(row.verdict.value for row in rows).most_common(),
        running=run.in_progress(),
        release=_release(rows),
        canary=told_of(run.store, run.config.name, run.run_id) if asked else None,
        looser=looser_limits(run),
    )


def render_outcome(
    dag_id: str, outcome: Outcome, report: Mapping[str, Any] | None, plot: bytes | None
) -> str:
    """Return the page of a run that watches production or a night: what it did, and why.

    Args:
        report: the look at production that it rests on, None without one.
    """
    picture = base64.b64encode(plot).decode() if plot else None
    return _template().render(dag_id=dag_id, outcome=outcome, report=report or {}, plot=picture)


def error_page(run_id: str, message: str) -> str:
    """Return the page of a run that can't be shown."""
    return _template().render(run_id=run_id, message=message)


def _release(rows: Sequence[ItemStatus]) -> str:
    """Return what stands in the way of the release."""
    stopping = [row for row in rows if row.stops_release]
    refusing = [row.item for row in stopping if row.verdict != Verdict.NOT_RUN]
    waiting = [row.item for row in stopping if row.verdict == Verdict.NOT_RUN]
    said = [
        f"{words}: {', '.join(items)}."
        for words, items in (("Release refused by", refusing), ("Not run yet", waiting))
        if items
    ]
    return " ".join(said) or "No critical item blocks the release."
