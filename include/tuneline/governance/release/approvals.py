"""Whether the approval of a release counts: who gave it, and for which bytes and evidence.

An approval names the manifest that it was given for. It does not count for another one, and not
after an evidence has changed that the manifest states: the person has seen other numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from tuneline.artifacts.answers import (
    APPROVALS,
    Approval,
    Approvals,
    approvals_needed,
    why_not,
)
from tuneline.artifacts.governance import MANIFEST_REF, Manifest, ManifestRef
from tuneline.catalogue import ITEMS
from tuneline.errors import TunelineError
from tuneline.human_answers import ABOUT_RELEASE, YES
from tuneline.run import Run
from tuneline.store import NotThere


def is_needed(run: Run) -> bool:
    """Return True if the run or the policy asks for an approval of the release."""
    production = run.config.profile == "production"
    return run.config.approval or (production and run.policy.content.approval)


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
        return f"nobody has approved the release, which is asked for (`approval: true`); {ask}"
    if answer.decision != YES:
        why = f": {answer.reason}" if answer.reason else ""
        return f"nobody has approved the release; {answer.by} has rejected it{why}"
    fault = why_not(run, answer.person)
    if fault:
        return f"the approval does not count: {fault}; {ask}"
    return _not_for(run, answer, reference, ask)


def _not_for(run: Run, answer: Approval, reference: ManifestRef | None, ask: str) -> str | None:
    """Return why a yes is not enough for the manifest; None if it is."""
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
    changed = list(_changed(run, reference))
    if changed:
        return (
            f"the approval of {answer.by} does not count: the evidence of {', '.join(changed)} has "
            "changed since the manifest was written; start a new run"
        )
    return None


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
            try:
                raw = run.store.get_bytes(run.step_key(item.id, name))
            except NotThere:
                found = None
            else:
                found = hashlib.sha256(raw).hexdigest()
            if found != stated.get(f"evidence/{item.id}/{name}"):
                yield item.id
                break
