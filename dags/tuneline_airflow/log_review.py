"""The question that asks people to label rows of the production logs."""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Param
from airflow.sdk.definitions.param import ParamsDict

from tuneline.config import Model, find_model
from tuneline_airflow.launching import store_uri
from tuneline_airflow.people import answerer, asked, refuse_strangers
from tuneline_airflow.retries import asking_again

if TYPE_CHECKING:
    from airflow.sdk import Context

_SEND, _LATER = "Send labels", "Go on without"


class LabelRows(HITLOperator):
    """A task that shows rows of some days and takes one person's labels.

    Args:
        model_name: the model.
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
        given = event["params_input"] or {}
        # The operator is made anew for the answer; rows may have been labelled since.
        shown = form_fields(ids_of_form(given))
        self._make_form({name: field for name, field in shown.items() if name in given})
        answer = super().execute_complete(context, event)
        if _SEND in event["chosen_options"]:
            store, run = open_store(store_uri()), context["dag_run"]
            with asking_again():
                put_answers(store, self.model_name, run.run_id, given, answerer(event))
        return answer

    def _make_form(self, fields: dict[str, dict[str, Any]]) -> None:
        self.params = ParamsDict({name: Param(**field) for name, field in fields.items()})


def label_rows(model: Model) -> LabelRows:
    """Make the task that asks for labels of the drifted days."""
    return LabelRows(
        task_id="label_rows",
        model_name=model.name,
        days="{{ ti.xcom_pull(task_ids='decide')['days'] }}",
        subject="Production drifted: which of these answers are right?",
        options=[_SEND, _LATER],
        defaults=_LATER,
        **asked(model),
        response_timeout=timedelta(hours=model.file.drift.review_hours),
    )
