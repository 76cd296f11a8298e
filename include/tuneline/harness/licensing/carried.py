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

from tuneline.artifacts.licenses import AUDITED, ENGINE_PACKAGES, LICENSE_ANSWERS, LicenseAnswers
from tuneline.artifacts.releases import Release, released
from tuneline.human_answers.license_answers import accepted
from tuneline.run import Run

# What `circumstances_of` and `generators_of` read of the configuration.
_CIRCUMSTANCES = "intended_use monthly_users domicile outputs_train_models generated_by".split()
_FOR = ", for version "
Subject = tuple[str, str, str]


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
    here = {subject: Acceptance(a.by, a.reason) for subject, a in accepted(run).items()}
    answers = (LICENSE_ANSWERS.find(run) or LicenseAnswers()).answers
    answered = {asked.subject for answer in answers for asked in answer.asked}
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
    raw = _bytes(release, "config.json")
    config = json.loads(raw) if raw else {}
    governance = config.get("governance") or {}
    return {"name": config.get("name"), **{name: governance.get(name) for name in _CIRCUMSTANCES}}


def _accepted_by_release(release: Release, name: str) -> dict[Subject, Acceptance]:
    raw = _bytes(release, name)
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


def _bytes(release: Release, name: str) -> bytes | None:
    """Return a file of the release, verified; None if it has no such file."""
    ref = release.find(name)
    if ref is None:
        return None
    return release.store.get_bytes(release.store.key_of(ref.uri), sha256=ref.sha256)
