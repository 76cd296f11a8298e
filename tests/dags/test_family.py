"""Five DAGs for each model file: their ids, owners, schedules, and what a broken file does."""

from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import CronDataIntervalTimetable

ROOT = Path(__file__).parents[2]
KINDS = (
    "finetune_to_production",
    "nightly_retraining",
    "production_logs",
    "drift_watch",
    "rollback",
)
FILE = """
owners: [support-ml]
approvers: [alice]
settings: {{data: {{source: s3://bucket/{name}.jsonl}}}}
nightly: {{schedule: "0 2 * * *"}}
"""


@pytest.fixture
def parsed(tmp_path, monkeypatch):
    """Parse the DAGs for some model files."""

    def parse(**files):
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        monkeypatch.setenv("TUNELINE_MODELS", str(tmp_path))
        bag = DagBag(str(ROOT / "dags"))
        assert bag.import_errors == {}
        return bag.dags

    return parse


def test_without_files_each_dag_is_there_once_and_starts_by_hand_alone(parsed):
    dags = parsed()
    assert set(dags) == set(KINDS)
    for kind in ("nightly_retraining", "production_logs", "finetune_to_production"):
        assert dags[kind].schedule is None
    # People's answers are waited for outside of any slot.
    tasks = [task for dag in dags.values() for task in dag.tasks]
    kinds = [task.operator_class if task.is_mapped else type(task) for task in tasks]
    asking = [t for t, kind in zip(tasks, kinds, strict=True) if issubclass(kind, HITLOperator)]
    assert len(asking) == 6
    assert {task.pool for task in asking} == {"default_pool"}


def test_each_model_has_its_own(parsed):
    dags = parsed(faq=FILE.format(name="faq"), billing=FILE.format(name="billing"))
    assert set(dags) == {f"{kind}__{name}" for kind in KINDS for name in ("billing", "faq")}
    main = dags["finetune_to_production__faq"]
    assert {task.owner for task in main.tasks} == {"support-ml"}
    # One release of a model at a time; another model's runs are another DAG's.
    assert main.max_active_runs == 1
    assert main.params["data"] == "s3://bucket/faq.jsonl"
    assert main.get_task("prepare_run").op_args == ("faq",)
    for name in ("approve_waivers", "approve_release"):
        assert [user["id"] for user in main.get_task(name).assigned_users] == ["alice"]
    # A mapped task, whose operators are made in the worker.
    mapped = main.get_task("review_pairs").partial_kwargs
    assert [user["id"] for user in mapped["assigned_users"]] == ["alice"]
    # The days' logs update an asset that drift waits for; their cron is what a backfill needs.
    logs = dags["production_logs__faq"]
    (asset,) = logs.get_task("check_day").outlets
    (awaited,) = dags["drift_watch__faq"].schedule
    assert awaited == asset
    assert isinstance(logs.schedule, CronDataIntervalTimetable)
    assert not logs.catchup


def test_a_broken_file_leaves_its_ids_with_the_reason(parsed):
    dags = parsed(faq=FILE.format(name="faq"), bad="owner: [x]")
    assert len(dags["finetune_to_production__faq"].tasks) > 40
    for kind in KINDS:
        broken = dags[f"{kind}__bad"]
        assert "did you mean owners?" in broken.description
        assert "broken" in broken.tags
        assert len(broken.tasks) == 1


def test_a_task_parses_the_dag_of_its_own_alone(parsed, monkeypatch):
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "drift_watch__faq")
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_TASK_ID", "compare")
    dags = parsed(faq=FILE.format(name="faq"), billing=FILE.format(name="billing"))
    assert set(dags) == {"drift_watch__faq"}
