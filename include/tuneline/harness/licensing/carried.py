"""Answers about licences that a run takes over from the released version of its model.

A model that is trained every night would otherwise wait every night for the answer that a person
gave once. An answer is taken over for the same thing under the same licence, as long as the
circumstances that licences are judged for have not changed.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass

from tuneline.artifacts.licenses import AUDITED, ENGINE_PACKAGES, Subject
from tuneline.artifacts.releases import CONFIG_FILE, Release, released
from tuneline.people.approvals import YES
from tuneline.people.license_answers import last_answers
from tuneline.run import Run

# What `circumstances_of` and `generators_of` read of the configuration.
_CIRCUMSTANCES = "intended_use monthly_users domicile outputs_train_models generated_by".split()
_FOR = ", for version "


@dataclass(frozen=True)
class Acceptance:
    """A licence that a person accepted.

    Attributes:
        by: who, and for which version if it was another one.
        reason: that person's reason.
    """

    by: str
    reason: str


def acceptances(run: Run) -> dict[Subject, Acceptance]:
    """Return what people accepted, by the subject of the question.

    What was answered in this run counts before what the released version brings along, so that a
    rejection ends an earlier approval.

    Raises:
        CorruptObject: if the released version is not the one that was released.
    """
    answered = last_answers(run)
    here = {
        subject: Acceptance(answer.by, answer.reason)
        for subject, answer in answered.items()
        if answer.decision == YES
    }
    release = released(run)
    if release is None or _circumstances(release) != _circumstances_of_run(run):
        return here
    before = {
        subject: found
        for name in (AUDITED.name, ENGINE_PACKAGES.name)
        for subject, found in _accepted_by_release(release, name).items()
        if subject not in answered
    }
    return before | here


def _circumstances_of_run(run: Run) -> dict[str, object]:
    stated = run.config.governance.model_dump(mode="json", include=set(_CIRCUMSTANCES))
    return {"name": run.config.name, **stated}


def _circumstances(release: Release) -> dict[str, object]:
    raw = release.read(CONFIG_FILE)
    config = json.loads(raw) if raw else {}
    governance = config.get("governance") or {}
    return {"name": config.get("name"), **{name: governance.get(name) for name in _CIRCUMSTANCES}}


def _accepted_by_release(release: Release, name: str) -> dict[Subject, Acceptance]:
    raw = release.read(name)
    rows = csv.DictReader(io.StringIO(raw.decode())) if raw else []
    return {
        (row["kind"], row["name"], row["license"]): Acceptance(
            _dated(row["accepted_by"], release.version), row["reason"]
        )
        for row in rows
        if row.get("decision") == "person" and row.get("accepted_by")
    }


def _dated(by: str, version: str) -> str:
    """Return who accepted a licence and for which version, the first one that it was for."""
    return by if _FOR in by else f"{by}{_FOR}{version}"
