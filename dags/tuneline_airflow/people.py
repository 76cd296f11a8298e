"""Tasks in which a person decides; the answers go into the run.

A question that a run does not ask skips its own task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.providers.standard.operators.hitl import ApprovalOperator, HITLOperator
from airflow.sdk import Param
from airflow.sdk.configuration import conf
from airflow.sdk.definitions.param import ParamsDict
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
)
from airflow.sdk.execution_time.hitl import HITLUser

from tuneline.artifacts.answers import Person, approvers_of
from tuneline.config import Model, User, find_model
from tuneline.licenses import answers as license_answers
from tuneline.people import approvals, blind_review
from tuneline.people.ballots import assignments_of
from tuneline.run import Run
from tuneline_airflow.failures import asking_again, fail_plainly, patiently
from tuneline_airflow.family import store_uri
from tuneline_airflow.notify import announcers
from tuneline_airflow.pods import StepPod, run_uri_of

if TYPE_CHECKING:
    from airflow.sdk import Context

    from tuneline.artifacts.governance import AskedLicense

_VOTE = "Send votes"
_SKIP = "Skip the review"
_REASON = "reason"


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
            self.body = self.question(_run(context), context)
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
                raise AirflowFailException(f"{answerer(event)} rejected {self.rejected}{why}")
            if self.stays_open(run):
                return self.execute(context)
        return super().execute_complete(context, event)


class WaiverApproval(RecordedApproval):
    """The question whether failures and looser limits of critical items are accepted."""

    def question(self, run: Run, context: Context) -> str | None:
        """Note the waivers of critical items that are asked about, and show them."""
        from tuneline.governance.release.approvals import waivers_question

        if not approvals.critical_waivers(run):
            return None
        approvals.note_question(run, approvals.ABOUT_WAIVERS)
        return waivers_question(run, checklist_url(context))

    def record(self, run: Run, decision: str, by: Person, reason: str) -> None:
        """Record the answer; a yes makes the waivers count."""
        about = approvals.ABOUT_WAIVERS
        answer = approvals.record_approval(run, about, decision, by, reason)
        if decision == self.APPROVE:
            approvals.record_waivers(run, run.meta.get("started_by"), answer)


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


class ReviewPairs(HITLOperator):
    """A task that shows some of the blind pairs and takes one reviewer's votes.

    Args:
        assignment: `reviewer` (None: whoever may answer for the model) and `pairs`, their numbers.
    """

    def __init__(self, *, assignment: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.assignment = assignment

    def execute(self, context: Context) -> Any:
        """Ask the reviewer, and wait for the time that the run's configuration gives."""
        run = _run(context)
        if self.assignment["reviewer"] is not None:
            self.assigned_users = assigned(self._asked(run))
        self.body = blind_review.review_body(run, self.assignment["pairs"])
        self._make_form(run)
        self.response_timeout = timedelta(hours=run.config.evaluation.review_hours)
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Store the votes with the name of the user that Airflow recorded."""
        run = _run(context)
        refuse_strangers(event, self._asked(run))
        # The operator is made anew for the answer.
        self._make_form(run)
        answer = super().execute_complete(context, event)
        if _VOTE in event["chosen_options"]:
            pairs, given = self.assignment["pairs"], event["params_input"] or {}
            reviewer = self.assignment["reviewer"] or answerer(event)
            with asking_again():
                blind_review.record_form(run, pairs, given, reviewer)
        return answer

    def _asked(self, run: Run) -> list[User]:
        """Return the reviewer, or whoever may answer for the model."""
        reviewer = self.assignment["reviewer"]
        if reviewer is None:
            return approvers_of(run)
        return [user for user in run.config.evaluation.reviewers if user.name == reviewer]

    def _make_form(self, run: Run) -> None:
        fields = blind_review.form_fields(run, self.assignment["pairs"])
        params = {name: Param(**field) for name, field in fields.items()}
        self.params = ParamsDict(params)


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
    raise AirflowException(f"{answerer(event)} was not asked ({names}); the question is put again")


def review_pairs(model: Model, dealt: Any) -> Any:
    """Make the tasks that ask for votes on the pairs which a `PairsPod` has dealt out."""
    return ReviewPairs.partial(
        task_id="review_pairs",
        **asked(model),
        subject="Blind review: which answer is better?",
        options=[_VOTE, _SKIP],
        # A review without an answer is an outcome that human_review states, not a failure.
        defaults=_SKIP,
        map_index_template="pairs {{ task.assignment['pairs'] | join(', ') }}"
        "{% if task.assignment['reviewer'] %} for {{ task.assignment['reviewer'] }}{% endif %}",
    ).expand(assignment=dealt)


def approve_waivers(model: Model) -> WaiverApproval:
    """Make the task that asks whether failures and looser limits of critical items are accepted."""
    return WaiverApproval(
        task_id=approvals.ABOUT_WAIVERS,
        **asked(model, retries=20),
        subject="Accept this of critical items?",
        params=reason_field("Why you decide so; needed for a yes."),
    )


def approve_release(model: Model) -> ReleaseApproval:
    """Make the task that asks for approval of the release, when all evidence is there."""
    return ReleaseApproval(
        task_id=approvals.ABOUT_RELEASE,
        **asked(model, retries=20),
        subject="Release this model?",
        params=reason_field("Why you decide so; kept in the release log."),
    )


def reason_field(description: str) -> dict[str, Param]:
    """Return the form of an approval: a field for the reason."""
    reason = Param(
        "",
        type=["string", "null"],
        format="multiline",
        title="Reason",
        description=description,
    )
    return {_REASON: reason}


def checklist_url(context: Context) -> str:
    """Return the address of the run's checklist tab."""
    ti = context["ti"]
    base = str(conf.get("api", "base_url", fallback="") or "").rstrip("/")
    place = f"/dags/{quote(ti.dag_id)}/runs/{quote(ti.run_id)}/plugin/release-checklist"
    return base + place


def _run(context: Context) -> Run:
    return Run.open(run_uri_of(context))


def answerer(event: dict[str, Any]) -> str:
    """Return the name of the user who answered, as Airflow recorded it."""
    return person(event).name or "unknown"


def person(event: dict[str, Any]) -> Person:
    """Return the user who answered, as Airflow recorded it."""
    user = event["responded_by_user"] or {}
    user_id = user.get("id")
    name = str(user.get("name") or user_id or "")
    return Person(name, None if user_id is None else str(user_id))


class LicenseApproval(RecordedApproval):
    """A question about licences: the answer and its reason are kept, a rejection stops the run."""

    rejected = "the licences"

    def question(self, run: Run, context: Context) -> str | None:
        """Show the licences of base model and data that wait for a person."""
        from tuneline.licenses.duties import question_text

        waiting = _open(run)
        return question_text(run, waiting) if waiting else None

    def record(self, run: Run, decision: str, by: Person, reason: str) -> None:
        """Keep the answer for the licences that were shown."""
        license_answers.record(run, _open(run), decision, by, reason)


def approve_license(model: Model) -> LicenseApproval:
    """Make the task that asks whether licences which the rules leave open may be used."""
    return LicenseApproval(
        task_id="approve_license",
        **asked(model),
        subject="May these licences be used?",
        params=reason_field("Who read the licence, and what it allows. An approval needs it."),
    )


def _open(run: Run) -> list[AskedLicense]:
    from tuneline.licenses.findings import open_of_run

    return open_of_run(run)


_SEND_FOUND, _SKIP_ROWS = "Send what was found", "Skip these rows"


class RowsPod(DealingPod):
    """The pod that scrubs, whose task deals out the rows that people are asked to read."""

    def deal(self, run: Run) -> list[Any]:
        """Return the rows of each form that nobody has answered."""
        from tuneline.data.pii.review.review import open_forms

        return open_forms(run)


class ReviewRows(HITLOperator):
    """A task that shows some scrubbed rows and takes what one person found in them."""

    def __init__(self, *, numbers: list[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.numbers = numbers

    def execute(self, context: Context) -> Any:
        """Show the rows, and wait for the time that the run's configuration gives."""
        from tuneline.data.pii.review.review import form_body

        run = Run.open(run_uri_of(context))
        self.body = form_body(run, self.numbers)
        self._make_form(run)
        self.response_timeout = timedelta(hours=run.config.data.pii_review_hours)
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Store what was found with the name of the user that Airflow recorded."""
        from tuneline.data.pii.review.review import record_form

        run = Run.open(run_uri_of(context))
        refuse_strangers(event, approvers_of(run))
        # The operator is made anew for the answer.
        self._make_form(run)
        answer = super().execute_complete(context, event)
        if _SEND_FOUND in event["chosen_options"]:
            with asking_again():
                record_form(run, self.numbers, event["params_input"] or {}, answerer(event))
        # What people typed is personal data, which no XCom may hold.
        return {**answer, "params_input": {}}

    def _make_form(self, run: Run) -> None:
        from tuneline.data.pii.review.review import form_fields

        fields = form_fields(run, self.numbers)
        self.params = ParamsDict({name: Param(**field) for name, field in fields.items()})


def review_rows(model: Model, dealt: Any) -> Any:
    """Make the tasks that ask what was missed in the rows which a `RowsPod` has dealt out."""
    return ReviewRows.partial(
        task_id="review_rows",
        **asked(model),
        subject="Is personal data left in these rows?",
        options=[_SEND_FOUND, _SKIP_ROWS],
        # A review without an answer is what the evidence states, not a failure.
        defaults=_SKIP_ROWS,
        map_index_template="rows {{ task.numbers | join(', ') }}",
    ).expand(numbers=dealt)


_SEND_LABELS, _LATER = "Send labels", "Go on without"


class LabelRows(HITLOperator):
    """A task that shows rows of some days and takes one person's labels.

    Args:
        days: template of the days, `YYYY-MM-DD..YYYY-MM-DD`.
    """

    template_fields = (*HITLOperator.template_fields, "days")

    def __init__(self, *, model_name: str, days: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model_name = model_name
        self.days = days

    def execute(self, context: Context) -> Any:
        """Show the open rows, and wait."""
        from tuneline.governance.production import labels
        from tuneline.store import open_store

        store, model = open_store(store_uri()), self.model_name
        first, last = (date.fromisoformat(day) for day in self.days.split(".."))
        days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
        rows = labels.review_rows(store, model, days)
        waiting = labels.open_rows(rows, labels.read_labels(store, model))
        self.body, fields = labels.label_form(waiting)
        self._make_form(fields)
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Put the labels aside with the name of the user that Airflow recorded."""
        from tuneline.governance.production.labels import form_fields, ids_of_form, put_answers
        from tuneline.store import open_store

        refuse_strangers(event, find_model(self.model_name).file.approvers)
        given = event.get("params_input") or {}
        # The operator is made anew for the answer; rows may have been labelled since.
        shown = form_fields(ids_of_form(given))
        self._make_form({name: field for name, field in shown.items() if name in given})
        answer = super().execute_complete(context, event)
        if _SEND_LABELS in event["chosen_options"]:
            store, run = open_store(store_uri()), context["dag_run"]
            with asking_again():
                put_answers(store, self.model_name, run.run_id, given, answerer(event))
        return {**answer, "params_input": {}}

    def _make_form(self, fields: dict[str, dict[str, Any]]) -> None:
        self.params = ParamsDict({name: Param(**field) for name, field in fields.items()})


def label_rows(model: Model) -> LabelRows:
    """Make the task that asks for labels of the drifted days."""
    return LabelRows(
        task_id="label_rows",
        model_name=model.name,
        days="{{ ti.xcom_pull(task_ids='decide')['days'] }}",
        subject="Production drifted: which of these answers are right?",
        options=[_SEND_LABELS, _LATER],
        defaults=_LATER,
        **asked(model),
        response_timeout=timedelta(hours=model.file.drift.review_hours),
    )
