"""What a person is shown who is asked for an approval: of a release, or of waivers.

The text is Markdown, as Airflow shows it. Whatever comes from data, settings or a model is escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from tuneline.artifacts.answers import approvals_needed
from tuneline.artifacts.governance import MANIFEST_REF
from tuneline.artifacts.releases import find_version, released
from tuneline.config import Waiver
from tuneline.errors import TunelineError
from tuneline.evidence import Evidence, Measurement, Verdict
from tuneline.governance.release.compare import changes
from tuneline.human_answers import critical_waivers
from tuneline.run import Run
from tuneline.verdicts import ItemStatus, LooserLimit, checklist, looser_limits

# What the hold-out says of the base and of the release in service, in this order.
_GAINS = (
    "tuned_metric",
    "base_metric",
    "gain",
    "gain_lower",
    "fair_base_metric",
    "gain_over_fair_base_lower",
    "released_metric",
    "difference_to_released",
    "difference_to_released_lower",
)
_OPEN = (Verdict.WARN, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.WAIVED, Verdict.NOT_RUN)
_MOST_NUMBERS = 4
# Of each section.
_MOST_CHANGES = 10
_LONGEST = 160


def release_question(run: Run, tab: str) -> str:
    """Return the question whether a run may be released.

    Args:
        run: the run, whose manifest is written.
        tab: address of its checklist in Airflow.
    """
    rows = checklist(run)
    evidence = {row.item: run.find_evidence(row.item) for row in rows}
    looser = looser_limits(run)
    sections = [
        _head(run, tab),
        ("## Gain", _gain(evidence.get("holdout_performance"))),
        ("## Limits looser than the policy", [_looser(one) for one in looser]),
        ("## Waivers", [_waiver(waiver) for waiver in run.config.waivers]),
        ("## Open warnings", [_open(row) for row in rows if row.verdict in _OPEN]),
        ("## What changed since the release before", list(_changes(run))),
        ("## The 25 verdicts", _table(rows, evidence)),
    ]
    return "\n\n".join(_section(title, lines) for title, lines in sections if lines)


def waivers_question(run: Run, tab: str) -> str:
    """Return the question whether failures or looser limits of critical items are accepted.

    Args:
        run: the run, which has just been created.
        tab: address of its checklist in Airflow.
    """
    wanted = critical_waivers(run)
    looser = looser_limits(run)
    others = [one for one in looser if not one.looser.names & {w.limit for w in wanted}]
    sections = [
        _head(run, tab),
        ("## Asked for", [_waiver(waiver, looser) for waiver in wanted]),
        ("## Other limits looser than the policy", [_looser(one) for one in others]),
    ]
    note = "Accept only what you would stand for: name and reason go into the release log."
    return "\n\n".join([*(_section(t, lines) for t, lines in sections if lines), note])


def _section(title: str, lines: Sequence[str]) -> str:
    # A table is one block; everything else is a list.
    if lines[0].startswith("|"):
        return f"{title}\n\n" + "\n".join(lines)
    return f"{title}\n\n" + "\n".join(f"- {line}" for line in lines)


def _head(run: Run, tab: str) -> tuple[str, list[str]]:
    config, reference = run.config, MANIFEST_REF.find(run)
    lines = [
        f"base model {_code(config.base_model)}, engine {_code(config.deployment.engine)}, "
        f"profile {_code(config.profile)}",
        f"started by {_text(run.meta.get('started_by') or 'a schedule')}"
        + (f": {_text(config.reason)}" if config.reason else ""),
        f"policy version {run.policy.version}, {_code(run.policy.sha256[:12])}",
        f"[the checklist with all measurements]({tab})",
    ]
    if reference is not None:
        lines.insert(0, f"manifest {_code(reference.sha256)}; the approval counts for it alone")
        if approvals_needed(run) > 1:
            lines.insert(
                1, "two approvers have to say yes; after the first the question stays open"
            )
    return f"# {_text(config.name)} {_text(run.run_id)}", lines


def _gain(evidence: Evidence | None) -> list[str]:
    if evidence is None:
        return ["holdout\\_performance was not run"]
    known = {m.name: m for m in evidence.measurements}
    numbers = [_number(known[name]) for name in _GAINS if name in known]
    compared = known.get("compared_with_released")
    if compared is not None and "difference_to_released" not in known:
        numbers.append(f"released model: {_text(compared.value)}")
    return [_text(evidence.summary), *numbers]


def _looser(one: LooserLimit) -> str:
    sort = "**CRITICAL** " if one.looser.critical else ""
    return f"{sort}{_code(one.looser.item)}: {_text(one.looser)}; {_text(one.told)}"


def _waiver(waiver: Waiver, limits: Sequence[LooserLimit] | None = None) -> str:
    what = "a failure is accepted"
    if waiver.limit is not None:
        what = f"{_code(waiver.limit)} is looser than the policy allows"
        if limits is not None:
            named = [one.looser for one in limits if waiver.limit in one.looser.names]
            what = "; ".join(_text(one) for one in named) or (
                f"{_code(waiver.limit)} is within the policy, so nothing is waived"
            )
    return f"{_code(waiver.item)}: {what}. Reason: {_text(waiver.reason)}"


def _open(row: ItemStatus) -> str:
    return f"**{row.verdict}** {_code(row.item)} ({row.severity}): {_text(row.because)}"


def _table(rows: Sequence[ItemStatus], evidence: dict[str, Evidence | None]) -> list[str]:
    lines = ["| item | severity | verdict | what decided |", "|---|---|---|---|"]
    for row in rows:
        found = evidence[row.item]
        numbers = _deciding(found.measurements) if found else []
        lines.append(
            f"| {_code(row.item)} | {row.severity} | {row.verdict} | {'; '.join(numbers)} |"
        )
    return lines


def _deciding(measurements: Sequence[Measurement]) -> list[str]:
    """Return the numbers with a limit, the broken ones first."""
    ruled = sorted((m for m in measurements if m.rule is not None), key=lambda m: m.ok is not False)
    shown = [_number(m) for m in ruled[:_MOST_NUMBERS]]
    more = len(ruled) - len(shown)
    return [*shown, f"{more} more"] if more > 0 else shown


def _number(m: Measurement) -> str:
    broken = " **broken**" if m.ok is False else ""
    limit = f" (must be {_text(m.rule)} {_text(m.limit)})" if m.rule else ""
    unit = f" {_text(m.unit)}" if m.unit and m.unit != "flag" else ""
    return f"{_text(m.name)} {_text(m.value)}{unit}{limit}{broken}"


def _changes(run: Run) -> Iterator[str]:
    """Yield what differs from the release in service."""
    reference = MANIFEST_REF.find(run)
    try:
        before = released(run)
        after = find_version(run.store, run.config.name, reference.version) if reference else None
        if before is None:
            yield "nothing was released under this name before"
            return
        if after is None:
            yield "the manifest of this version is not in the store"
            return
        found = changes(before, after)
    except TunelineError as error:
        yield f"it can't be compared: {_text(error)}"
        return
    yield f"compared with {_code(before.version)}; `tuneline diff` shows all {len(found)} changes"
    for section in sorted({change.section for change in found}, key=_weight):
        here = [change for change in found if change.section == section]
        for change in here[:_MOST_CHANGES]:
            shown = f"{_text(change.before)} → {_text(change.after)}"
            yield f"{section} {_text(change.name)}: {shown}"
        if len(here) > _MOST_CHANGES:
            yield f"{section}: {len(here) - _MOST_CHANGES} more changes"


# What decides about a release comes first, versions of packages last.
_ORDER = "verdicts policy base data settings adapter engine code metrics packages".split()


def _weight(section: str) -> int:
    return _ORDER.index(section) if section in _ORDER else len(_ORDER)


def _text(value: object) -> str:
    """Return a value as text that Markdown takes for text, at most 160 characters of it."""
    if isinstance(value, float):
        value = f"{value:.5g}"
    elif value is None:
        value = "–"
    elif isinstance(value, list | dict):
        value = json.dumps(value, ensure_ascii=False)
    words = " ".join(str(value).split())
    if len(words) > _LONGEST:
        words = f"{words[: _LONGEST - 1]}…"
    return re.sub(r"([\\`*_{}\[\]<>|#~!])", r"\\\1", words)


def _code(value: object) -> str:
    return f"`{re.sub(r'[`|]', ' ', ' '.join(str(value).split()))}`"
