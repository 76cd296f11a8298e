"""### Release an earlier version of a model again

Moves the release pointer back, after the files of that version were compared with its manifest.
Engines and gateways that follow the store (`tuneline follow`) serve it within seconds, without a
dropped request; the version that is left is no fallback any more.

*Trigger* it with a reason. An empty `version` takes the release before the present one. The release
log keeps your name, as Airflow knows it, and the reason.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, Param, get_current_context, task
from airflow.sdk.definitions.param import ParamsDict

from tuneline.airflow.failures import fail_plainly, worker_retry_policy
from tuneline.airflow.family import RELEASED, ROLLBACK, asset_of, settings_of, store_uri
from tuneline.airflow.rest import leave_note
from tuneline.config import Model, find_model


def build(model: Model) -> DAG:
    """Make the DAG of a model."""
    with DAG(
        description="Release an earlier version again",
        schedule=None,
        **settings_of(ROLLBACK, model, "Rollback", __doc__),
    ) as dag:
        move_back.override(outlets=[asset_of(model, RELEASED)])(model.name)
    dag.params = ParamsDict(
        {
            "version": Param(
                None,
                type=["string", "null"],
                title="Version",
                description="Version to release again, the id of the run that made it; empty: the "
                "release before the present one.",
            ),
            "reason": Param(
                "",
                type="string",
                minLength=1,
                title="Reason",
                description="Why; kept in the release log.",
            ),
        }
    )
    return dag


@task(retries=3, retry_policy=worker_retry_policy)
@fail_plainly()
def move_back(model_name: str) -> None:
    """Move the pointer, and say in the run's note what is released now."""
    from tuneline.artifacts.releases import pointer_of
    from tuneline.governance.release.rollback import announce, roll_back
    from tuneline.store import open_store

    context: Any = get_current_context()
    params, store = context["params"], open_store(store_uri())
    by = context["dag_run"].triggering_user_name
    model = find_model(model_name)
    which = pointer_of(model.profile)
    place = (store, model_name, params["version"] or None)
    pointer = roll_back(*place, by=by, reason=params["reason"], which=which)
    leave_note(context, announce(store, pointer))
    uri = store.uri_of(f"runs/{pointer.version}")
    released = {"run": uri, "model": model_name, "profile": model.profile}
    context["outlet_events"][asset_of(model, RELEASED)].extra = released
