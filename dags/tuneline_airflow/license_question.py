"""The question to a person about a licence that the rules leave open, before it is audited."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Param, task
from airflow.sdk.definitions.param import ParamsDict
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from tuneline.config import Model
from tuneline.errors import UserError
from tuneline.human_answers import license_answers
from tuneline.run import Run
from tuneline_airflow.people import answerer, asked, person
from tuneline_airflow.pods import run_uri_of

if TYPE_CHECKING:
    from airflow.sdk import Context

    from tuneline.artifacts.licenses import AskedLicense

_REASON = "reason"


@task.short_circuit(ignore_downstream_trigger_rules=False)
def ask_license(run_uri: str) -> bool:
    """Return True if a licence of base model or data waits for a person."""
    return bool(_open(Run.open(run_uri)))


class LicenseApproval(ApprovalOperator):
    """A question about licences: the answer and its reason are kept, a rejection stops the run."""

    def execute(self, context: Context) -> Any:
        """Show the licences, and ask."""
        from tuneline.governance.licensing.question import question_text

        run = Run.open(run_uri_of(context))
        self.body = question_text(run, _open(run))
        self._make_form()
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Record the answer and its author, then go on or fail."""
        # The operator is made anew for the answer.
        self._make_form()
        if "error" not in event:
            run = Run.open(run_uri_of(context))
            decision = event["chosen_options"][0]
            reason = (event["params_input"] or {}).get(_REASON)
            try:
                license_answers.record(run, _open(run), decision, person(event), reason)
            except UserError as error:
                raise AirflowException(str(error)) from None
            if decision == self.REJECT:
                # Not to be asked again, which a failure with retries left would do.
                raise AirflowFailException(f"{answerer(event)} rejected the licences: {reason}")
        return super().execute_complete(context, event)

    def _make_form(self) -> None:
        field = Param(
            None,
            type=["string", "null"],
            title="Reason",
            description="Who read the licence, and what it allows. An approval needs it.",
        )
        self.params = ParamsDict({_REASON: field})


def approve_license(model: Model) -> LicenseApproval:
    """Make the task that asks whether licences which the rules leave open may be used."""
    return LicenseApproval(
        task_id="approve_license",
        **asked(model),
        fail_on_reject=True,
        subject="May these licences be used?",
        # An approval without a reason fails the task; the next try asks again.
        retries=5,
        retry_delay=timedelta(seconds=1),
    )


def _open(run: Run) -> list[AskedLicense]:
    from tuneline.harness.licensing.findings import open_of_run

    return open_of_run(run)
