"""### From raw instruction data to a served model

Every item of the release checklist is a task that measures something and leaves evidence. A
critical item that failed fails its task and stops the run; for data items that is the gate after it
(`gate_…`), which derives the verdict a second time. What ships is what passed.

**Start it** with *Trigger*: name a dataset, keep or change the other fields. `overrides` takes
any setting of the configuration as YAML. Settings are validated by `prepare_run` before
anything runs; an unknown key is refused.

**Follow it**: a red square is a failed item, whose reason is in the task's log; clear it to have
it measured again. The tab *Release checklist* has all verdicts. Evidence is in the store, under
`runs/<run id>/<phase>/<item>/evidence.json`.

Steps run as pods, with the same operator on a laptop and on a cluster. Steps that use the GPU
share the pool `gpu`. People are asked only where the configuration says so: to review answers
blindly, to approve the release and what it waives of critical items; and where the rules leave a
licence to a person.

Where the configuration asks for a canary (`governance.canary`), the released version answers a
share of the keys first, and the task `canary` waits until it is promoted or withdrawn.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, TaskGroup, TriggerRule
from airflow.sdk.definitions.param import ParamsDict

from tuneline.airflow.family import (
    DATASET,
    MAIN,
    OPTIONAL_BEFORE,
    RELEASED,
    asset_of,
    form,
    prepare_run,
    settings_of,
)
from tuneline.airflow.notify import announcers
from tuneline.airflow.people import approve_license, approve_release, review_pairs, review_rows
from tuneline.airflow.steps import answer_holdout, tasks_of
from tuneline.airflow.training import sweep
from tuneline.airflow.waiting import AwaitCanary
from tuneline.catalogue import RUN_ORDER, Group
from tuneline.config import Model

TOOLTIPS = {
    Group.PREPARE: "Settings, base model and licences, before anything is computed",
    Group.DATA: "Rows that training may see",
    Group.TRAINING: "The adapter",
    Group.SHIPPING: "The bytes that ship",
    Group.EVALUATION: "Is it better, is it fast",
    Group.SERVING: "Does it serve: engines, probes, warm starts",
    Group.GOVERNANCE: "May it ship, and as what",
}


def build(model: Model) -> DAG:
    """Make the main DAG of a model."""
    with DAG(
        description="Raw instruction data to a served model, with evidence for 25 items",
        schedule=None,
        # A week for people, and a week for a canary.
        dagrun_timeout=timedelta(days=14),
        **settings_of(MAIN, model, "Fine-tune to production", __doc__),
    ) as dag:
        _wire(model)
    for step_id, kind in (("final_audit", DATASET), ("promote", RELEASED)):
        task: Any = dag.get_task(step_id)
        task.add_outlets([asset_of(model, kind)])
    # Each operator made in a DAG with params copies them, which would take most of the parse.
    dag.params = ParamsDict(form(model))
    dag.tags.add("release")
    return dag


def _wire(model: Model) -> None:
    """Make the tasks in the current DAG, and the order in which they run."""
    groups = {
        group: TaskGroup(group.value, prefix_group_id=False, tooltip=TOOLTIPS[group])
        for group in Group
    }
    with groups[Group.PREPARE]:
        run = prepare_run(model.name)
        licences = approve_license(model)
    tasks, engine = {}, model.engine
    for step in RUN_ORDER:
        with groups[step.group]:
            rule = TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS if step.id in OPTIONAL_BEFORE else None
            tasks[step.id] = tasks_of(step, engine, rule)
    with groups[Group.DATA]:
        findings = review_rows(model, tasks["pii_scrubbing"].first.output)
    with groups[Group.TRAINING]:
        ranks, trials = sweep()
    with groups[Group.EVALUATION]:
        shards = answer_holdout(tasks["build_engine"].first.output, engine)
        votes = review_pairs(model, tasks["prepare_review"].first.output)
    with groups[Group.GOVERNANCE]:
        approval = approve_release(model)
        tasks["promote"].last >> AwaitCanary()
    tasks["promote"].last.on_success_callback = announcers("release", model)

    # In the catalogue, steps that measure speed wait for each other, so that nothing else runs
    # beside them on a small machine. People may take their time meanwhile.
    for step in RUN_ORDER:
        for earlier in step.after:
            tasks[earlier].last >> tasks[step.id].first
        if not step.after:
            run >> tasks[step.id].first
    # Each question is put as soon as what it is about is there.
    tasks["fetch_base"].last >> licences
    # People read rows while the later data items are at work; the final audit judges them.
    tasks["pii_scrubbing"].last >> findings
    [tasks["license_audit"].last, tasks["final_audit"].last] >> ranks
    tasks["lineage"].last >> approval
    optional = {t.task_id: t for t in (licences, findings, trials, shards, votes, approval)}
    for step_id, before in OPTIONAL_BEFORE.items():
        optional[before] >> tasks[step_id].first
