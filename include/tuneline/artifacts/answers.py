"""Answers of people: approvals, votes, waivers, sheets of personal data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tuneline.artifacts.artifact import Document, RunDocument
from tuneline.artifacts.releases import readable
from tuneline.config import User
from tuneline.run import Run

# Names under which Airflow records a user who is nobody in particular.
_NOBODY = ("", "unknown", "anonymous")


@dataclass(frozen=True)
class Person:
    """The user who answered, as Airflow recorded it."""

    name: str
    id: str | None = None

    @property
    def names(self) -> set[str]:
        """Both ways in which a name may mean the user."""
        return {self.name, self.id or self.name}

    def is_one_of(self, users: Iterable[User]) -> bool:
        """Return True if users of the configuration include this one; an id decides if known."""
        return any(
            user.name in self.names if user.id is None or self.id is None else user.id == self.id
            for user in users
        )


class Approval(BaseModel):
    """The answer of a person to the task `subject`."""

    subject: str
    decision: str
    by: str
    by_id: str | None = None
    at: str
    reason: str = ""
    about: str | None = None  # SHA-256 of the manifest that was asked about

    @property
    def person(self) -> Person:
        """The user who gave it."""
        return Person(self.by, self.by_id)


class Approvals(BaseModel):
    """The answers of people, oldest first."""

    approvals: list[Approval] = []
    asked: dict[str, str] = {}  # what the last question of each task is about; see `Approval.about`


APPROVALS = RunDocument("approvals.json", Approvals)


class ModelRules(BaseModel):
    """`models/<name>/rules.json`: what a release to production has to meet, whoever starts the run.

    The first such release writes them; later only one that a person has approved changes them.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    schema_: Literal["tuneline/rules/1"] = Field("tuneline/rules/1", alias="schema")
    profile: Literal["production"] = "production"
    approval: bool
    approvers: list[User]
    policy_version: int
    policy_sha256: str

    @classmethod
    def of(cls, run: Run) -> ModelRules | None:
        """Return the rules of a run's model; None for another profile, or before any release."""
        key = rules_key(run.config.name)
        if run.config.profile != "production" or not run.store.exists(key):
            return None
        with readable(run.store.uri_of(key)):
            return cls.model_validate_json(run.store.get_bytes(key))

    @classmethod
    def after(cls, run: Run, known: ModelRules | None) -> ModelRules:
        """Return the rules after a release of a run; `known` are those of today."""
        policy = run.policy
        # Without a model's file a run says nothing of who decides.
        stays = known if "approvers" not in run.meta else None
        return cls(
            approval=stays.approval if stays else run.config.approval or policy.content.approval,
            approvers=stays.approvers if stays else run.meta.get("approvers") or [],
            policy_version=policy.version,
            policy_sha256=policy.sha256,
        )


def rules_key(name: str) -> str:
    """Return the key of a model's rules."""
    return f"models/{name}/rules.json"


def approvers_of(run: Run) -> list[User]:
    """Return the users who may approve something of a run; empty if everybody may."""
    rules = ModelRules.of(run)
    if rules is not None and rules.approvers:
        return rules.approvers
    return [User.model_validate(user) for user in run.meta.get("approvers") or []]


def approvals_needed(run: Run) -> int:
    """Return how many people have to approve a release.

    With `approvers`, two people see it before it is in production: whoever started the run, and an
    approver. Where no person is known to have started it, two approvers do.
    """
    production = run.config.profile == "production"
    return 2 if production and approvers_of(run) and not run.meta.get("started_by") else 1


def able_approvers(run: Run) -> list[str]:
    """Return the approvers of a run whose yes to its release counts."""
    users, starter = approvers_of(run), run.meta.get("started_by")
    # An unknown id must not match an unknown name.
    free = run.config.profile != "production" or not starter
    return [user.name for user in users if free or starter not in (user.name, user.id)]


def too_few_approvers(run: Run) -> str | None:
    """Return why a release of a run could never be approved, one sentence; None if it can."""
    able, needed = able_approvers(run), approvals_needed(run)
    if not approvers_of(run) or len(able) >= needed:
        return None
    why = f"{run.meta.get('started_by') or 'no person'} started it"
    return (
        f"profile: production: the release of this run needs the yes of {needed} of its approvers "
        f"who did not start it ({why}), and the model's file names {len(able)} such "
        f"({', '.join(able) or 'nobody'}); name more in `approvers`"
    )


def stranger(run: Run, person: Person) -> str | None:
    """Return why a person has no say in a run; None if it is an approver, or none are named."""
    approvers = approvers_of(run)
    if not approvers or person.is_one_of(approvers):
        return None
    names = ", ".join(user.name for user in approvers)
    return f"{person.name or 'nobody'} is not an approver ({names})"


def why_not(run: Run, person: Person) -> str | None:
    """Return why the yes of a person does not count for a run; None if it does.

    With `approvers` in the model's file, only they may approve. Under `profile: production` they
    may not approve what they started themselves, and somebody has to be known by name.
    """
    approvers, production = approvers_of(run), run.config.profile == "production"
    if why := stranger(run, person):
        return why
    if production and person.name.casefold() in _NOBODY:
        return "Airflow does not know who answered, which profile: production requires"
    if production and approvers and run.meta.get("started_by") in person.names:
        return (
            f"{person.name} started the run, and under profile: production another approver has to "
            f"answer ({', '.join(user.name for user in approvers)})"
        )
    return None


FOLDER = "data/pii_review"


class DrawnRow(BaseModel):
    """A scrubbed row that was drawn, for a person to read.

    Attributes:
        row_hash: hash of its turns.
        stratum: one of `tuneline.data.pii.review.review.STRATA`.
        weight: rows of the stratum over rows drawn from it.
        text: the row as a person reads it, with surrogates as `[ENTITY]`.
    """

    row_id: str
    row_hash: str
    stratum: str  # one of `tuneline.data.pii.review.review.STRATA`
    weight: float  # rows of the stratum over rows drawn from it
    text: str  # surrogates are shown as `[ENTITY]`


class PiiSheet(BaseModel):
    """Every row that was drawn; a row's number is its place, from 1."""

    draw_id: str  # hash of the rows, so that answers count for these rows alone
    rows: list[DrawnRow]


class PiiFindings(BaseModel):
    """The personal data that one person found in some of the rows."""

    draw_id: str
    reviewer: str
    at: str
    missed: dict[int, list[tuple[str, str]]]  # by row number, type and text of each piece


PII_SHEET = Document("pii_scrubbing", "review_sheet.json", PiiSheet)


def findings_document(draw_id: str, first_row: int) -> RunDocument[PiiFindings]:
    """Return the document of the answer to one form, by the first row that it shows."""
    return RunDocument(f"{FOLDER}/{draw_id}/rows-{first_row:04d}.json", PiiFindings)


def findings_of(run: Run, draw_id: str) -> Iterator[PiiFindings]:
    """Yield what people found in the rows of a draw."""
    prefix = run.key("")
    for key in run.store.keys(run.key(FOLDER, draw_id)):
        found = RunDocument(key.removeprefix(prefix), PiiFindings).find(run)
        if found is not None and found.draw_id == draw_id:
            yield found
