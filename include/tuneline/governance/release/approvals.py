"""Whether the approval of a release counts: who gave it, and for which bytes and evidence.

An approval names the manifest that it was given for. It does not count for another one, and not
after an evidence has changed that the manifest states: the person has seen other numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from tuneline.artifacts.governance import MANIFEST_REF, Manifest, ManifestRef
from tuneline.artifacts.people import APPROVALS, Approval, Approvals, why_not
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
    answers = (APPROVALS.find(run) or Approvals()).approvals
    return next((one for one in reversed(answers) if one.subject == ABOUT_RELEASE), None)


def approver(run: Run) -> str | None:
    """Return who approved the release; None if no approval counts."""
    answer = last_answer(run)
    return answer.by if answer and not refusal(run) else None


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
    if reference is None or answer.about != reference.sha256:
        return (
            f"the approval of {answer.by} does not count: it was given for the manifest "
            f"{(answer.about or 'without a hash')[:12]}, not for this one "
            f"({reference.sha256[:12] if reference else 'none'}); {ask}"
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
