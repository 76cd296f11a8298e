"""Tasks in which a person decides; the answers go into the run.

A question that a run does not ask skips its own task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator, HITLOperator
from airflow.sdk import Param
from airflow.sdk.configuration import conf
from airflow.sdk.definitions.param import ParamsDict
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException
from airflow.sdk.execution_time.hitl import HITLUser

from tuneline.airflow.failures import asking_again, fail_plainly, patiently
from tuneline.airflow.family import store_uri
from tuneline.airflow.links import checklist_url, evidence_url
from tuneline.airflow.notify import announcers
from tuneline.airflow.pods import StepPod, run_uri_of
from tuneline.artifacts.answers import Person, approvers_of
from tuneline.config import Model, User, find_model
from tuneline.config.model_file import people_per_label
from tuneline.licenses import answers as license_answers
from tuneline.people import approvals, blind_review
from tuneline.people.ballots import assignments_of
from tuneline.run import Run
from tuneline.store import open_store

if TYPE_CHECKING:
    from airflow.sdk import Context

# Options of the sheets: what is sent, and what is chosen where nobody answers in time.
_VOTE, _SKIP = "Send votes", "Skip the review"
_SEND_FOUND, _SKIP_ROWS = "Send what was found", "Skip these rows"
_SEND_LABELS, _LATER = "Send labels", "Go on without"
# Not `reason`: Airflow fills a field that is named as one of the run's with what the run has.
_REASON = "approval_reason"

# Fields of a form by name, as arguments of `Param`.
Fields = dict[str, dict[str, Any]]


class DealingPod(StepPod):
    """A pod whose task deals out what it left to people: one question for each part."""

    def deal(self, run: Run) -> list[Any]:
        """Return the parts; without any, nobody is asked."""
        raise NotImplementedError

    def execute(self, context: Context) -> list[Any]:
        """Run the pod to its end and return the parts as the task's XCom."""
        super().execute(context)
        # Not before: the pod itself would get a container that waits for a file with an XCom.
        self.do_xcom_push = True
        return self._deal(run_uri_of(context))

    @patiently
    @fail_plainly()
    def _deal(self, run_uri: str) -> list[Any]:
        return self.deal(Run.open(run_uri))


class RecordedApproval(ApprovalOperator):
    """An approval whose answer is recorded in the run; a rejection fails the task for good.

    A yes of someone who may not give it, or without a reason that is needed, fails the task; its
    next try asks again.

    Attributes:
        rejected: what a person rejects, in the error of the task.
    """

    rejected = "it"

    def question(self, run: Run, context: Context) -> str | None:
        """Return what there is to decide about, in Markdown; None if there is nothing."""
        raise NotImplementedError

    def record(self, run: Run, decision: str, by: Person, reason: str) -> None:
        """Record an answer.

        Raises:
            UserError: if it can't be taken.
        """
        raise NotImplementedError

    def stays_open(self, run: Run) -> bool:
        """Return True if another answer is needed."""
        return False

    def execute(self, context: Context) -> Any:
        """Show what there is to decide about, and wait; skip the task if there is nothing."""
        with fail_plainly():
            run = _run(context)
            # The rules of the model may name others than its file does today.
            self.assigned_users = assigned(approvers_of(run))
            self.body = self.question(run, context)
        if self.body is None:
            raise AirflowSkipException("the run asks for no answer here")
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Record the answer and its author, then go on or fail."""
        if "error" not in event:
            run, decision = _run(context), event["chosen_options"][0]
            reason = str((event["params_input"] or {}).get(_REASON) or "").strip()
            with asking_again():
                self.record(run, decision, person(event), reason)
            if decision == self.REJECT:
                why = f": {reason}" if reason else ""
                raise AirflowFailException(f"{person(event).name} rejected {self.rejected}{why}")
            if self.stays_open(run):
                return self.execute(context)
        return super().execute_complete(context, event)


class ReleaseApproval(RecordedApproval):
    """The question whether the run's model version may be released."""

    def question(self, run: Run, context: Context) -> str | None:
        """Note the manifest that is asked about, and show what the evidence says."""
        from tuneline.governance.release.approvals import is_needed, release_question

        if not is_needed(run):
            return None
        approvals.note_question(run, approvals.ABOUT_RELEASE)
        return release_question(run, checklist_url(context))

    def record(self, run: Run, decision: str, by: Person, reason: str) -> None:
        """Record the answer."""
        approvals.record_approval(run, approvals.ABOUT_RELEASE, decision, by, reason)

    def stays_open(self, run: Run) -> bool:
        """Return True if a second approver has to answer."""
        from tuneline.governance.release.approvals import lacks_a_second

        return lacks_a_second(run)


class PairsPod(DealingPod):
    """The pod that draws the blind pairs, where the run asks for a review of people."""

    def execute(self, context: Context) -> list[Any]:
        """Run the pod, or skip the task."""
        with fail_plainly():
            wanted = _run(context).config.evaluation.review
        if not wanted:
            raise AirflowSkipException("the run asks for no review (evaluation.review)")
        return super().execute(context)

    def deal(self, run: Run) -> list[Any]:
        """Return the pairs of each reviewer's task."""
        return [asdict(assignment) for assignment in assignments_of(run)]


@dataclass(frozen=True)
class _Kind:
    """The text, fields and hours of a kind of sheet, how its answers are kept, and who is asked."""

    shown: Callable[[Context, Any], tuple[str, Fields, float]]
    # True if another person has to answer too.
    record: Callable[[Context, Any, dict[str, Any], str], bool | None]
    users: Callable[[Context, Any], Sequence[User]]
    # The fields that answers fill, where they are not those that are shown by then.
    fields: Callable[[dict[str, Any]], Fields] | None = None
    # What people typed may be personal data, which no XCom may hold.
    private: bool = True


class Sheet(HITLOperator):
    """A task that shows people a part of what there is to read and takes one person's answers.

    Args:
        kind: `pairs`, `rows` or `labels`.
        part: an assignment of pairs, numbers of rows, or the model whose rows get labels.
    """

    def __init__(self, *, kind: str, part: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kind, self.part = kind, part

    def execute(self, context: Context) -> Any:
        """Ask, and wait as long as the configuration says."""
        kind = _KINDS[self.kind]
        self.assigned_users = assigned(kind.users(context, self.part))
        body, fields, hours = kind.shown(context, self.part)
        self.body = f"[One after another, with keys]({evidence_url(context)})\n\n{body}"
        self._make_form(fields)
        self.response_timeout = timedelta(hours=hours)
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Store the answers with the name of the user that Airflow recorded."""
        kind, answers = _KINDS[self.kind], event.get("params_input") or {}
        refuse_strangers(event, kind.users(context, self.part))
        # The operator is made anew for the answer.
        fields = kind.fields(answers) if kind.fields else kind.shown(context, self.part)[1]
        self._make_form(fields)
        result = super().execute_complete(context, event)
        if self.options[0] in event["chosen_options"]:
            with asking_again():
                another = kind.record(context, self.part, answers, person(event).name)
            if another:
                return self.execute(context)
        return {**result, "params_input": {}} if kind.private else result

    def _make_form(self, fields: Fields) -> None:
        self.params = ParamsDict({name: Param(**field) for name, field in fields.items()})


def _reviewers(context: Context, part: dict[str, Any]) -> Sequence[User]:
    """Return the reviewer of some pairs, or whoever may answer for the model."""
    reviewer = part["reviewer"]
    if reviewer is None:
        return approvers_of(_run(context))
    return [u for u in _run(context).config.evaluation.reviewers if u.name == reviewer]


def _pairs(context: Context, part: dict[str, Any]) -> tuple[str, Fields, float]:
    run, pairs = _run(context), part["pairs"]
    body, fields = blind_review.review_body(run, pairs), blind_review.form_fields(run, pairs)
    return body, fields, run.config.evaluation.review_hours


def _keep_votes(context: Context, part: dict[str, Any], answers: dict[str, Any], by: str) -> None:
    blind_review.record_form(_run(context), part["pairs"], answers, part["reviewer"] or by)


def _rows(context: Context, part: list[int]) -> tuple[str, Fields, float]:
    from tuneline.data.pii.review.review import form_body, form_fields

    run = _run(context)
    return form_body(run, part), form_fields(run, part), run.config.data.pii_review_hours


def _keep_findings(context: Context, part: list[int], answers: dict[str, Any], by: str) -> None:
    from tuneline.data.pii.review.review import record_form

    record_form(_run(context), part, answers, by)


def _open_rows(context: Context, model: str) -> tuple[str, Fields, float]:
    """Return the open rows of the days that `decide` chose."""
    from tuneline.governance.production import labels

    store = open_store(store_uri())
    chosen = context["ti"].xcom_pull(task_ids="decide")["days"]
    first, last = (date.fromisoformat(day) for day in chosen.split(".."))
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    rows = labels.review_rows(store, model, days)
    waiting = labels.open_rows(rows, labels.read_labels(store, model))
    form = labels.label_form(waiting, people_per_label(model))
    return *form, find_model(model).file.drift.review_hours


def _filled(answers: dict[str, Any]) -> Fields:
    """Return the fields of labels that were shown; rows may have been labelled since."""
    from tuneline.governance.production.labels import form_fields, ids_of_form

    shown = form_fields(ids_of_form(answers))
    return {name: field for name, field in shown.items() if name in answers}


def _put_labels(context: Context, model: str, answers: dict[str, Any], by: str) -> bool:
    """Put labels aside, for the pod that scrubs them."""
    from tuneline.governance.production.labels import put_answers

    return put_answers(open_store(store_uri()), model, context["dag_run"].run_id, answers, by)


_KINDS = {
    "pairs": _Kind(_pairs, _keep_votes, _reviewers, private=False),
    "rows": _Kind(_rows, _keep_findings, lambda context, _: approvers_of(_run(context))),
    "labels": _Kind(
        _open_rows, _put_labels, lambda _, model: find_model(model).file.approvers, _filled
    ),
}


def asked(model: Model, retries: int = 5) -> dict[str, Any]:
    """Return users, notifiers and retries of a question, as arguments of its operator."""
    return {
        "assigned_users": assigned(model.file.approvers),
        "notifiers": announcers("question", model),
        # An answer that can't be taken fails the task; the next try asks again.
        "retries": retries,
        "retry_delay": timedelta(seconds=1),
    }


def assigned(users: Sequence[User]) -> list[HITLUser] | None:
    """Return users for Airflow to ask; None, which asks everyone who may edit the DAG.

    Airflow compares ids alone, so that a name which is not an id would keep everybody out. Where
    one is unknown Airflow asks everyone, and `refuse_strangers` takes no answer of others.
    """
    simple = str(conf.get("core", "auth_manager", fallback="")).endswith(".SimpleAuthManager")
    known = [(user.id or (user.name if simple else None), user.name) for user in users]
    if any(user_id is None for user_id, _ in known):
        return None
    return [HITLUser(id=str(user_id), name=name) for user_id, name in known] or None


def refuse_strangers(event: dict[str, Any], users: Sequence[User]) -> None:
    """Ask again if somebody has answered who was not asked; without users everybody was.

    Raises:
        AirflowException: naming who was asked.
    """
    # Nobody has answered in time.
    if event.get("responded_by_user") is None or not users or person(event).is_one_of(users):
        return
    names = ", ".join(user.name for user in users)
    raise AirflowException(
        f"{person(event).name} was not asked ({names}); the question is put again"
    )


def review_pairs(model: Model, dealt: Any) -> Any:
    """Make the tasks that ask for votes on the pairs which a `PairsPod` has dealt out."""
    return Sheet.partial(
        task_id="review_pairs",
        kind="pairs",
        **asked(model),
        subject="Blind review: which answer is better?",
        options=[_VOTE, _SKIP],
        # A review without an answer is an outcome that human_review states, not a failure.
        defaults=_SKIP,
        map_index_template="pairs {{ task.part['pairs'] | join(', ') }}"
        "{% if task.part['reviewer'] %} for {{ task.part['reviewer'] }}{% endif %}",
    ).expand(part=dealt)


def approve_release(model: Model) -> ReleaseApproval:
    """Make the task that asks for approval of the release, when all evidence is there."""
    return ReleaseApproval(
        task_id=approvals.ABOUT_RELEASE,
        **asked(model, retries=20),
        subject=f"Release a new version of {model.name}?",
        params=reason_field("Why you decide so; kept in the release log."),
    )


def reason_field(description: str) -> dict[str, Param]:
    """Return the form of an approval: a field for the reason."""
    reason = Param(
        "", type=["string", "null"], format="multiline", title="Reason", description=description
    )
    return {_REASON: reason}


def _run(context: Context) -> Run:
    return Run.open(run_uri_of(context))


def person(event: dict[str, Any]) -> Person:
    """Return the user who answered, as Airflow recorded it."""
    user = event["responded_by_user"] or {}
    user_id = user.get("id")
    name = str(user.get("name") or user_id or "unknown")
    return Person(name, None if user_id is None else str(user_id))


class LicenseApproval(RecordedApproval):
    """A question about licences: the answer and its reason are kept, a rejection stops the run."""

    rejected = "the licences"

    def question(self, run: Run, context: Context) -> str | None:
        """Show the licences of base model and data that wait for a person."""
        from tuneline.licenses.duties import question_text
        from tuneline.licenses.findings import open_of_run

        waiting = open_of_run(run)
        return question_text(run, waiting) if waiting else None

    def record(self, run: Run, decision: str, by: Person, reason: str) -> None:
        """Keep the answer for the licences that were shown."""
        from tuneline.licenses.findings import open_of_run

        license_answers.record(run, open_of_run(run), decision, by, reason)


def approve_license(model: Model) -> LicenseApproval:
    """Make the task that asks whether licences which the rules leave open may be used."""
    return LicenseApproval(
        task_id="approve_license",
        **asked(model),
        subject=f"May {model.name} use these licences?",
        params=reason_field("Who read the licence, and what it allows. An approval needs it."),
    )


class RowsPod(DealingPod):
    """The pod that scrubs, whose task deals out the rows that people are asked to read."""

    def deal(self, run: Run) -> list[Any]:
        """Return the rows of each form that nobody has answered."""
        from tuneline.data.pii.review.review import open_forms

        return open_forms(run)


def review_rows(model: Model, dealt: Any) -> Any:
    """Make the tasks that ask what was missed in the rows which a `RowsPod` has dealt out."""
    return Sheet.partial(
        task_id="review_rows",
        kind="rows",
        **asked(model),
        subject="Is personal data left in these rows?",
        options=[_SEND_FOUND, _SKIP_ROWS],
        # A review without an answer is what the evidence states, not a failure.
        defaults=_SKIP_ROWS,
        map_index_template="rows {{ task.part | join(', ') }}",
    ).expand(part=dealt)


def label_rows(model: Model) -> Sheet:
    """Make the task that asks for labels of the drifted days."""
    return Sheet(
        task_id="label_rows",
        kind="labels",
        part=model.name,
        subject="Production drifted: which of these answers are right?",
        options=[_SEND_LABELS, _LATER],
        defaults=_LATER,
        **asked(model),
    )
