"""The tab of a run that watches production or a night: what it did, and the report behind it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from typing import Any

from release_checklist.page import document
from tuneline.governance.retraining.outcome import Outcome


def render_outcome(
    dag_id: str, outcome: Outcome, report: Mapping[str, Any] | None, plot: bytes | None
) -> str:
    """Return the page.

    Args:
        dag_id: DAG of the run.
        outcome: what it did.
        report: the look at production that it rests on, None without one.
        plot: the look's picture, PNG.
    """
    body = (
        f"<h1>{escape(dag_id)}</h1><p>{escape(outcome.text)}</p>"
        f'<p class="note">{escape(outcome.at)}</p>'
    )
    if report is not None:
        body += _measures(report.get("measures", ())) + _drivers(report.get("drivers", {}))
    if plot is not None:
        picture = base64.b64encode(plot).decode()
        body += f'<p><img alt="signals by day" src="data:image/png;base64,{picture}"></p>'
    return document(body)


def _measures(measures: Any) -> str:
    lines = "".join(
        f"<tr><td>{escape(m['name'])}</td><td>{m['value']:.4g}</td><td>{m['p_value']:.3g}</td>"
        f"<td>{m['limit']:.3g}</td>"
        f'<td class="{"no" if m["drifted"] else ""}">{"drifted" if m["drifted"] else "ok"}</td>'
        f"<td>{escape(str(m['since'] or ''))}</td></tr>"
        for m in measures
    )
    head = "<tr><th>signal</th><th>value</th><th>p</th><th>limit</th><th></th><th>since</th></tr>"
    return f"<table>{head}{lines}</table>" if lines else ""


def _drivers(drivers: Mapping[str, Any]) -> str:
    lines = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(str(driver.get('day', '')))}</td>"
        f"<td>{escape(str(driver.get('text') or ''))}</td></tr>"
        for name, found in drivers.items()
        for driver in found
    )
    head = "<tr><th>signal</th><th>day</th><th>prompts that drive it</th></tr>"
    return f"<table>{head}{lines}</table>" if lines else ""
