"""The question that asks people to read scrubbed rows for personal data that was missed."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Param
from airflow.sdk.definitions.param import ParamsDict

from tuneline.artifacts.answers import approvers_of
from tuneline.config import Model
from tuneline.run import Run
from tuneline_airflow.people import DealingPod, answerer, asked, refuse_strangers
from tuneline_airflow.pods import run_uri_of
from tuneline_airflow.retries import asking_again

if TYPE_CHECKING:
    from airflow.sdk import Context

_SEND, _SKIP = "Send what was found", "Skip these rows"


class RowsPod(DealingPod):
    """The pod that scrubs, whose task deals out the rows that people are asked to read."""

    def deal(self, run: Run) -> list[Any]:
        """Return the rows of each form that nobody has answered."""
        from tuneline.data.pii.review.review import open_forms

        return open_forms(run)


class ReviewRows(HITLOperator):
    """A task that shows some scrubbed rows and takes what one person found in them.

    Args:
        numbers: the numbers of the rows.
    """

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
        if _SEND in event["chosen_options"]:
            with asking_again():
                record_form(run, self.numbers, event["params_input"] or {}, answerer(event))
        return answer

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
        options=[_SEND, _SKIP],
        # A review without an answer is what the evidence states, not a failure.
        defaults=_SKIP,
        map_index_template="rows {{ task.numbers | join(', ') }}",
    ).expand(numbers=dealt)
