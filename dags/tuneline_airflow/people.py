"""Tasks in which a person decides; the answers go into the run."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator, HITLOperator
from airflow.sdk import Param, task
from airflow.sdk.definitions.param import ParamsDict
from airflow.sdk.exceptions import AirflowException
from airflow.sdk.execution_time.hitl import HITLUser

from tuneline import human_answers
from tuneline.config import Model
from tuneline.errors import UserError
from tuneline.human_answers import review_form
from tuneline.human_answers.ballots import assignments_of
from tuneline.run import Run
from tuneline_airflow.notify import announcers
from tuneline_airflow.pods import RUN_URI, run_uri_of
from tuneline_airflow.retries import fail_plainly, worker_retry_policy

if TYPE_CHECKING:
    from airflow.sdk import Context

_VOTE = "Send votes"
_SKIP = "Skip the review"


@task.short_circuit(ignore_downstream_trigger_rules=False)
def ask_waivers(run_uri: str) -> bool:
    """Return True if the run waives a critical item, which needs a person's approval."""
    return bool(human_answers.critical_waivers(Run.open(run_uri)))


@task.short_circuit(ignore_downstream_trigger_rules=False)
def ask_review(run_uri: str) -> bool:
    """Return True if the run asks for a blind review."""
    return Run.open(run_uri).config.evaluation.review


@task.short_circuit(ignore_downstream_trigger_rules=False)
def ask_approval(run_uri: str) -> bool:
    """Return True if the run asks for approval before the release."""
    return Run.open(run_uri).config.approval


class RunApproval(ApprovalOperator):
    """An approval whose answer is recorded in the run; a rejection fails the task."""

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Record the answer and its author, then go on or fail."""
        if "error" not in event:
            run = _run(context)
            decision, user = event["chosen_options"][0], answerer(event)
            human_answers.record_approval(run, self.task_id, decision, user)
            if self.task_id == "approve_waivers" and decision == self.APPROVE:
                human_answers.record_waivers(run, run.meta.get("started_by"), user)
        return super().execute_complete(context, event)


@task(retries=2, retry_policy=worker_retry_policy)
@fail_plainly()
def assign_pairs(run_uri: str) -> list[dict[str, Any]]:
    """Return the pairs of each reviewer's task; without any, there is no task."""
    return [asdict(assignment) for assignment in assignments_of(Run.open(run_uri))]


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
        run, reviewer = _run(context), self.assignment["reviewer"]
        if reviewer is not None:
            self.assigned_users = [HITLUser(id=reviewer, name=reviewer)]
        self.body = review_form.review_body(run, self.assignment["pairs"])
        self._make_form(run)
        self.response_timeout = timedelta(hours=run.config.evaluation.review_hours)
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Store the votes with the name of the user that Airflow recorded."""
        run = _run(context)
        # The operator is made anew for the answer.
        self._make_form(run)
        answer = super().execute_complete(context, event)
        if _VOTE in event["chosen_options"]:
            pairs, given = self.assignment["pairs"], event["params_input"] or {}
            try:
                review_form.record_form(run, pairs, given, answerer(event))
            except UserError as error:
                raise AirflowException(str(error)) from None
        return answer

    def _make_form(self, run: Run) -> None:
        fields = review_form.form_fields(run, self.assignment["pairs"])
        params = {name: Param(**field) for name, field in fields.items()}
        self.params = ParamsDict(params)


def asked(model: Model) -> dict[str, Any]:
    """Return the users and the notifiers of a question, as arguments of its operator."""
    users = [HITLUser(id=name, name=name) for name in model.file.approvers]
    # None: everyone who may edit the DAG.
    return {"assigned_users": users or None, "notifiers": announcers("question", model)}


def review_pairs(model: Model) -> tuple[Any, Any]:
    """Make the task that deals out the blind pairs, and those that ask for votes on them."""
    assigned = assign_pairs(RUN_URI)
    return assigned, ReviewPairs.partial(
        task_id="review_pairs",
        **asked(model),
        subject="Blind review: which answer is better?",
        options=[_VOTE, _SKIP],
        # A review without an answer is an outcome that human_review states, not a failure.
        defaults=_SKIP,
        # Votes that can't be stored fail the task; the next try asks again.
        retries=5,
        retry_delay=timedelta(seconds=1),
        map_index_template="pairs {{ task.assignment['pairs'] | join(', ') }}"
        "{% if task.assignment['reviewer'] %} for {{ task.assignment['reviewer'] }}{% endif %}",
    ).expand(assignment=assigned)


def approve_waivers(model: Model) -> RunApproval:
    """Make the task that asks whether failures of critical items may be accepted."""
    return RunApproval(
        task_id="approve_waivers",
        **asked(model),
        fail_on_reject=True,
        subject="Accept the failure of critical items?",
        body="The run waives critical items; `waivers` in its configuration says which and why.\n\n"
        f"Run: {RUN_URI}",
    )


def approve_release(model: Model) -> RunApproval:
    """Make the task that asks for approval of the release, when all evidence is there."""
    return RunApproval(
        task_id="approve_release",
        **asked(model),
        fail_on_reject=True,
        subject="Release this model?",
        body=f"Every check has passed. Evidence and manifest: {RUN_URI}",
    )


def _run(context: Context) -> Run:
    return Run.open(run_uri_of(context))


def answerer(event: dict[str, Any]) -> str:
    """Return the name of the user who answered, as Airflow recorded it."""
    user = event["responded_by_user"] or {}
    return str(user.get("name") or user.get("id") or "unknown")
