"""### From raw instruction data to a served model

Every item of the release checklist is a task that measures something and leaves evidence;
the task after it (`gate_…` for data items, `check_…` for the others) reads that evidence and
stops the run when a critical item failed. What ships is what passed.

**Start it** with *Trigger*: name a dataset, keep or change the other fields. `overrides` takes
any setting of the configuration as YAML. Settings are validated by `prepare_run` before
anything runs; an unknown key is refused.

**Follow it**: a red square is a failed item, its sentence stands in the task's log. Evidence
lies in the store under `runs/<run id>/<phase>/<item>/evidence.json`.

Steps run as pods, with the same operator on a laptop and on a cluster. Steps that use the GPU
share the pool `gpu`. People are asked only where the configuration says so: to waive a
critical item, to review answers blindly, to approve the release.
"""

from __future__ import annotations

from datetime import timedelta

import pendulum
from airflow.sdk import DAG, TaskGroup, TriggerRule

from tuneline_airflow.launching import form, prepare_run
from tuneline_airflow.people import (
    approve_release,
    approve_waivers,
    ask_approval,
    ask_review,
    ask_waivers,
    review_pairs,
)
from tuneline_airflow.pods import RUN_URI
from tuneline_airflow.steps import Step, audit, data_item, helper, in_order, item, training
from tuneline_airflow.sweep import sweep
from tuneline_airflow.tracking import sync_tracking

DATA_ITEMS = [
    "schema_validation",
    "pii_scrubbing",
    "deduplication",
    "token_length_audit",
    "distribution_balancing",
]

# What follows a question to people, or a sweep: it goes on when nobody was asked and nothing
# had to be tried, but never when everything before it was skipped.
AFTER_PEOPLE = AFTER_SWEEP = TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS

with DAG(
    dag_id="finetune_to_production",
    dag_display_name="Fine-tune to production",
    description="Raw instruction data to a served, fine-tuned model, with evidence for 25 items",
    doc_md=__doc__,
    schedule=None,
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(days=7),
    params=form(),
    default_args={"owner": "ml-platform"},
    tags=["tuneline", "llm", "release"],
) as dag:
    run = prepare_run()
    waivers = approve_waivers()
    waivers_wanted = ask_waivers(RUN_URI)

    with TaskGroup("data", prefix_group_id=False, tooltip="Rows that training may see"):
        rows = [
            data_item("schema_validation", trigger_rule=AFTER_PEOPLE),
            *(data_item(item_id) for item_id in DATA_ITEMS[1:]),
            audit("final_audit", "audit", DATA_ITEMS),
        ]
        in_order(*rows)

    with TaskGroup("training", prefix_group_id=False, tooltip="The adapter"):
        sweep_wanted, trials = sweep()
        lora = item("lora_selection", trigger_rule=AFTER_SWEEP)
        plan = item("gradient_accumulation", gpus=True)
        train = training()
        trained = [
            item("loss_monitoring"),
            item("checkpointing", gpus=True),
            item("quantization_verification", gpus=True),
        ]
        export = helper("export_candidate", "export")
        train.last >> sync_tracking()
        in_order(Step(trials, trials), lora, plan, train, trained, export)

    with TaskGroup("deployment", prefix_group_id=False, tooltip="The bytes that ship"):
        shipped = [
            item("adapter_merging", gpus=True),
            item("production_quantization", gpus=True),
        ]
        engine = helper("build_engine", "build-engine", gpus=True)
        serving = [
            item("engine_optimization", gpus=True),
            item("health_checks", gpus=True),
            item("cold_start", gpus=True),
        ]
        in_order(*shipped, engine)
        in_order(*serving)

    with TaskGroup("evaluation", prefix_group_id=False, tooltip="Is it better, is it fast"):
        measured = [
            item("holdout_performance", gpus=True),
            item("base_regression", gpus=True),
            item("determinism", gpus=True),
            item("latency_benchmark", gpus=True),
        ]
        in_order(*measured)
        review_wanted = ask_review(RUN_URI)
        prepared = helper("prepare_review", "review")
        answers = review_pairs()
        review = item("human_review", trigger_rule=AFTER_PEOPLE)
        in_order(measured[-1], review)
        measured[-1].last >> review_wanted >> prepared.first >> answers >> review.first

    with TaskGroup("governance", prefix_group_id=False, tooltip="May it ship, and as what"):
        licences = item("license_audit", trigger_rule=AFTER_PEOPLE)
        operated = [item("cost_tracking"), item("drift_detection"), item("fallback", gpus=True)]
        lineage = item("lineage")
        approval_wanted = ask_approval(RUN_URI)
        approval = approve_release()
        promote = helper("promote", "promote", trigger_rule=AFTER_PEOPLE)
        in_order(operated, lineage, promote)
        lineage.last >> approval_wanted >> approval >> promote.first

    # From phase to phase. Steps that measure speed wait for each other, so that on a small
    # machine nothing else runs beside them; people may take their time meanwhile.
    run >> waivers_wanted >> waivers >> [licences.first, rows[0].first]
    run >> [licences.first, rows[0].first, sweep_wanted]
    in_order([licences, rows[-1]], [Step(trials, trials), lora])
    in_order(export, shipped[0])
    in_order(engine, measured[0])
    in_order(measured[-1], serving[0])
    in_order(serving[-1], operated)
    in_order(review, lineage)
