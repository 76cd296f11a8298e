"""The checklist as an HTML page: no script, no outside resource, everything escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tuneline.catalogue import get_item
from tuneline.evidence import Evidence, Measurement, Verdict
from tuneline.governance.release.canary import told_of
from tuneline.run import Run
from tuneline.verdicts import ItemStatus, LooserLimit, looser_limits

_STYLE = """
:root { color-scheme: light dark; }
body { font: 14px/1.45 system-ui, sans-serif; margin: 1.2rem; }
h1 { font-size: 1.15rem; margin: 0 0 .2rem; } h2 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
.note { opacity: .7; } .tally span { margin-right: 1rem; }
details { border-bottom: 1px solid #8884; padding: .35rem 0; } summary { cursor: pointer; }
summary code { font-size: .95em; } .why { margin: .2rem 0 .2rem 1.2rem; opacity: .8; }
.badge { display: inline-block; min-width: 5.4rem; text-align: center; border-radius: .6rem;
  padding: 0 .5rem; margin-right: .5rem; font-weight: 600; color: #fff; }
.pass { background: #1a7f37; } .warn { background: #9a6700; } .fail { background: #cf222e; }
.inconclusive { background: #bc4c00; }
.waived { background: #8250df; } .not_run { background: #57606a; }
.not_applicable { background: #8c959f; }
table { border-collapse: collapse; margin: .4rem 0 .4rem 1.2rem; }
td, th { border: 1px solid #8884; padding: .15rem .5rem; text-align: left;
  overflow-wrap: anywhere; }
td.no, .no { color: #cf222e; font-weight: 600; }
.looser { border: 2px solid #cf222e; border-radius: .4rem; padding: .3rem .8rem; }
.mild { border-color: #9a6700; }
"""


def render(run: Run, rows: Sequence[ItemStatus], evidence: Mapping[str, Evidence | None]) -> str:
    """Return the page of a run.

    Args:
        run: run whose checklist is shown.
        rows: the 25 rows of its checklist.
        evidence: evidence of each item, None for an item that was not run.
    """
    tally = Counter(row.verdict.value for row in rows)
    counts = "".join(
        f'<span><b class="badge {escape(verdict)}">{escape(verdict)}</b>{count}</span>'
        for verdict, count in tally.most_common()
    )
    release = _release(rows)
    running = run.in_progress()
    now = "".join(
        f"<p>Running: <code>{escape(step)}</code> {escape(text)}</p>"
        for step, text in running.items()
    )
    phases: dict[str, list[ItemStatus]] = {}
    for row in rows:
        phases.setdefault(row.phase, []).append(row)
    body = "".join(
        f"<h2>{escape(phase.capitalize())}</h2>"
        + "".join(_row(row, evidence.get(row.item)) for row in group)
        for phase, group in phases.items()
    )
    return document(
        f"<h1>Release checklist: {escape(run.config.name)}</h1>"
        f'<p class="note">{escape(run.uri)}</p><p class="tally">{counts}</p>'
        f"{now}<p>{release}</p>{_canary(run)}{_looser(looser_limits(run))}{body}",
        live=bool(running),
    )


def _canary(run: Run) -> str:
    """Return how the canary of the run's version stands; "" if it asks for none."""
    if not run.config.governance.canary.share:
        return ""
    told = told_of(run.store, run.config.name, run.run_id)
    return f"<p>Canary: {escape(told)}.</p>" if told else ""


def _looser(limits: Sequence[LooserLimit]) -> str:
    """Return the table of the limits that are looser than the policy; red with a critical one."""
    if not limits:
        return ""
    lines = "".join(
        f'<tr><td class="{"no" if one.looser.critical else ""}">{escape(str(one.looser))}</td>'
        f"<td><code>{escape(one.looser.item)}</code></td>"
        f"<td>{'critical' if one.looser.critical else 'not critical'}</td>"
        f"<td>{escape(one.told)}</td></tr>"
        for one in limits
    )
    frame = "looser" if any(one.looser.critical for one in limits) else "looser mild"
    return (
        f'<div class="{frame}"><h2>Limits looser than the policy</h2><table><tr><th>limit</th>'
        f"<th>item</th><th></th><th>waiver</th></tr>{lines}</table></div>"
    )


def error_page(run_id: str, message: str) -> str:
    """Return the page of a run that can't be shown."""
    return document(f"<h1>Release checklist: {escape(run_id)}</h1><p>{escape(message)}</p>")


def document(body: str, *, live: bool = False) -> str:
    """Return a whole page around a body of HTML; a live one is loaded again every ten seconds."""
    again = '<meta http-equiv="refresh" content="10">' if live else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{again}'
        f"<title>Release checklist</title><style>{_STYLE}</style></head><body>{body}</body></html>"
    )


def _release(rows: Sequence[ItemStatus]) -> str:
    """Return what stands in the way of the release."""
    stopping = [row for row in rows if row.stops_release]
    refusing = [row.item for row in stopping if row.verdict != Verdict.NOT_RUN]
    waiting = [row.item for row in stopping if row.verdict == Verdict.NOT_RUN]
    said = [
        f"{words}: {escape(', '.join(items))}."
        for words, items in (("Release refused by", refusing), ("Not run yet", waiting))
        if items
    ]
    return " ".join(said) or "No critical item stands in the way of the release."


def _row(row: ItemStatus, evidence: Evidence | None) -> str:
    title = get_item(row.item).title
    sentence = row.because if evidence is None else row.summary
    red = " no" if row.verdict == "waived" and row.severity == "critical" else ""
    detail = f'<p class="why{red}">{escape(row.because)}</p>'
    if evidence is not None:
        detail += _measurements(evidence.measurements) + _artifacts(evidence)
    return (
        f'<details><summary><span class="badge {escape(row.verdict)}">{escape(row.verdict)}</span>'
        f'<b class="{red.strip()}">{escape(title)}</b> <code>{escape(row.item)}</code> '
        f'<span class="note">{escape(row.severity)}</span><br>{escape(sentence)}</summary>'
        f"{detail}</details>"
    )


def _measurements(measurements: Sequence[Measurement]) -> str:
    if not measurements:
        return ""
    lines = "".join(
        f"<tr><td>{escape(m.name)}</td><td>{_cell(m.value)}</td><td>{escape(m.unit)}</td>"
        f"<td>{escape(m.rule or '')} {_cell(m.limit) if m.rule else ''}</td>"
        f"<td>{'' if m.noise is None else f'±{m.noise:.3g}'}</td>"
        f'<td class="{"no" if m.ok is False else ""}">'
        f"{ {True: 'holds', False: 'broken', None: ''}[m.ok] }</td></tr>"
        for m in measurements
    )
    return (
        "<table><tr><th>measured</th><th>value</th><th>unit</th><th>limit</th><th>noise</th>"
        f"<th></th></tr>{lines}</table>"
    )


def _artifacts(evidence: Evidence) -> str:
    if not evidence.artifacts:
        return ""
    lines = "".join(
        f"<tr><td>{escape(ref.name)}</td><td>{ref.bytes:,} bytes</td>"
        f"<td><code>{escape(ref.sha256[:16])}</code></td></tr>"
        for ref in evidence.artifacts
    )
    return f"<table><tr><th>artifact</th><th>size</th><th>SHA-256</th></tr>{lines}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return escape(str(value))
