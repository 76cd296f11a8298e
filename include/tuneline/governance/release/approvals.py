"""Whether the approval of a release counts: who gave it, and for which bytes and evidence."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import suppress

from tuneline.artifacts.answers import (
    APPROVALS,
    Approval,
    Approvals,
    ModelRules,
    able_approvers,
    approvals_needed,
    why_not,
)
from tuneline.artifacts.governance import MANIFEST_REF, Manifest, ManifestRef
from tuneline.artifacts.releases import find_version, released
from tuneline.catalogue import ITEMS
from tuneline.config import Waiver
from tuneline.errors import TunelineError
from tuneline.evidence import Evidence, Measurement, Verdict
from tuneline.governance.release.compare import changes
from tuneline.machine.markdown import Verbatim, render
from tuneline.people.approvals import ABOUT_RELEASE, YES, critical_waivers
from tuneline.run import Run
from tuneline.store import NotThere
from tuneline.verdicts import checklist, looser_limits


def is_needed(run: Run) -> bool:
    """Return True if anything asks for an approval of the release."""
    return any(asked_by(run))


def asked_by(run: Run) -> Iterator[str]:
    """Yield what asks for an approval of the release, each as part of a sentence."""
    if run.config.approval:
        yield "`approval: true`"
    yield from dict.fromkeys(f"a waiver of {w.item}" for w in critical_waivers(run))
    if run.config.profile != "production":
        return
    if run.policy.content.approval:
        yield "the policy"
    rules = ModelRules.of(run)
    if rules is None:
        return
    if rules.approval:
        yield "the rules of the model"
    after = ModelRules.after(run, rules).model_dump(mode="json")
    for name, before in rules.model_dump(mode="json").items():
        if before != after[name]:
            yield f"a change of the model's rules: {name} {before} → {after[name]}"


def last_answer(run: Run) -> Approval | None:
    """Return the last answer to the question about the release, None without one."""
    return next(reversed(_answers(run)), None)


def approver(run: Run) -> str | None:
    """Return who approved the release, two names if two had to; None if no approval counts."""
    answer = last_answer(run)
    if answer is None or refusal(run):
        return None
    second = _second(run, answer) if approvals_needed(run) > 1 else None
    return f"{second.by}, {answer.by}" if second else answer.by


def lacks_a_second(run: Run) -> bool:
    """Return True if the last answer approves the release, and another approver has to as well."""
    answer = last_answer(run)
    if approvals_needed(run) == 1 or answer is None or answer.decision != YES:
        return False
    return why_not(run, answer.person) is None and _second(run, answer) is None


def _second(run: Run, answer: Approval) -> Approval | None:
    """Return an earlier yes of another person to the same manifest, since the last no."""
    for earlier in reversed(_answers(run)):
        if earlier.decision != YES:
            return None
        other = not earlier.person.names & answer.person.names
        if other and earlier.about == answer.about and why_not(run, earlier.person) is None:
            return earlier
    return None


def _answers(run: Run) -> list[Approval]:
    answers = (APPROVALS.find(run) or Approvals()).approvals
    return [one for one in answers if one.subject == ABOUT_RELEASE]


def refusal(run: Run) -> str | None:
    """Return why no approval of the release counts, one sentence; None if one does."""
    answer, reference = last_answer(run), MANIFEST_REF.find(run)
    ask = f"answer the task {ABOUT_RELEASE} in Airflow"
    if answer is None:
        why = "; ".join(asked_by(run))
        return f"no one has approved the release, which is asked for ({why}); {ask}"
    if answer.decision != YES:
        why = f": {answer.reason}" if answer.reason else ""
        return f"no one has approved the release; {answer.by} has rejected it{why}"
    if fault := why_not(run, answer.person):
        return f"the approval does not count: {fault}; {ask}"
    if reference is None or answer.about != reference.sha256:
        return (
            f"the approval of {answer.by} does not count: it was given for the manifest "
            f"{(answer.about or 'without a hash')[:12]}, not for this one "
            f"({reference.sha256[:12] if reference else 'none'}); {ask}"
        )
    if lacks_a_second(run):
        return (
            f"{answer.by} alone has approved the release; no person is known to have started the "
            f"run, and under profile: production two approvers have to answer; {ask}"
        )
    changed = ", ".join(_changed(run, reference))
    why = f"the evidence of {changed} has changed since the manifest was written; start a new run"
    return f"the approval of {answer.by} does not count: {why}" if changed else None


def _changed(run: Run, reference: ManifestRef) -> Iterator[str]:
    """Yield the items whose evidence is not the one that the manifest states."""
    try:
        raw = run.store.get_bytes(run.store.key_of(reference.uri))
        manifest = Manifest.model_validate_json(raw)
    except (TunelineError, ValueError):
        yield "every item (the manifest can't be read)"
        return
    stated = {file.name: file.sha256 for file in manifest.files}
    for item in ITEMS:
        if item.id == MANIFEST_REF.step:
            continue
        for name in ("evidence.json", "gate.json"):
            found = None
            with suppress(NotThere):
                raw = run.store.get_bytes(run.step_key(item.id, name))
                found = hashlib.sha256(raw).hexdigest()
            if found != stated.get(f"evidence/{item.id}/{name}"):
                yield item.id
                break


# What the hold-out says of the base and of the release in service, in this order.
_GAINS = (
    "tuned_metric base_metric gain gain_lower fair_base_metric gain_over_fair_base_lower "
    "released_metric difference_to_released difference_to_released_lower"
).split()
_OPEN = (Verdict.WARN, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.NOT_RUN)
# Of each section.
_MOST_CHANGES = 10
_LONGEST = 160


def release_question(run: Run, tab: str) -> str:
    """Return the question whether a run may be released; `tab` is its checklist's address."""
    rows = checklist(run)
    evidence = {row.item: run.find_evidence(row.item) for row in rows}
    holdout = evidence.get("holdout_performance")
    known = {m.name: m for m in holdout.measurements} if holdout else {}
    compared = None if "difference_to_released" in known else known.get("compared_with_released")
    manifest, needed = MANIFEST_REF.find(run), approvals_needed(run)
    return render(
        "tuneline.governance.release",
        "question.jinja",
        text=_text,
        code=_code,
        run=run,
        tab=tab,
        manifest=manifest,
        needed=needed,
        able=able_approvers(run),
        asked_by=list(asked_by(run)),
        rows=[(row, _ruled(evidence[row.item])) for row in rows],
        about=_about,
        open=_OPEN,
        holdout=holdout,
        gains=[known[name] for name in _GAINS if name in known],
        compared=compared,
        looser=looser_limits(run),
        changes=_changes(run),
    ).strip()


def _about(waiver: Waiver, because: str) -> str:
    """Return the reasons of a verdict that name what a waiver accepts."""
    named = f" {waiver.limit or waiver.measurement}"
    return "; ".join(w for w in because.split("; ") if named in f" {w}") or "it is not needed"


def _ruled(evidence: Evidence | None) -> list[Measurement]:
    """Return the measurements with a limit, the broken ones first."""
    found = [m for m in evidence.measurements if m.rule is not None] if evidence else []
    return sorted(found, key=lambda m: m.ok is not False)


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
    for section in _ORDER:
        here = [change for change in found if change.section == section]
        for change in here[:_MOST_CHANGES]:
            shown = f"{_text(change.before)} → {_text(change.after)}"
            yield f"{section} {_text(change.name)}: {shown}"
        if len(here) > _MOST_CHANGES:
            yield f"{section}: {len(here) - _MOST_CHANGES} more changes"


# What decides about a release comes first, versions of packages last.
_ORDER = "verdicts policy base data settings adapter engine code metrics packages".split()


def _text(value: object) -> Verbatim:
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
    return Verbatim(re.sub(r"([\\`*_{}\[\]<>|#~!])", r"\\\1", words))


def _code(value: object) -> Verbatim:
    return Verbatim(f"`{re.sub(r'[`|]', ' ', ' '.join(str(value).split()))}`")
