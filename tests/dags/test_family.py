"""The DAGs of each model file: their ids and schedules, a curated day, and runs that DAGs start."""

import inspect
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from airflow.dag_processing.dagbag import DagBag
from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import CronDataIntervalTimetable
from airflow.sdk.exceptions import AirflowFailException
from tests.lab.airflow_api import airflow_api
from tests.lab.logged import DAY
from tests.lab.runs import IN_PRODUCTION, Lab

from tuneline.artifacts.answers import Person, approvals_needed, why_not
from tuneline.config import merge
from tuneline.errors import RetryableError
from tuneline.evidence import Verdict, measure
from tuneline.failures import failed
from tuneline.governance.production.curated_days import CurationEvidence, publish
from tuneline.run import Run
from tuneline.step import store_output
from tuneline.step_context import StepContext
from tuneline.store import open_store

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
tags: [tier-1]
access_control: {{support: [can_read, can_edit]}}
approvers: [alice]
settings: {{data: {{source: s3://bucket/{name}.jsonl}}}}
nightly: {{schedule: "0 2 * * *"}}
"""


def dags_in(folder):
    """The DAGs of the model files in a folder, which TUNELINE_MODELS names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNELINE_MODELS", str(folder))
        bag = DagBag(str(ROOT / "dags"))
    assert bag.import_errors == {}
    return bag.dags


@pytest.fixture
def parsed(tmp_path):
    """Parse the DAGs for some model files."""

    def parse(**files):
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        return dags_in(tmp_path)

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
    assert len(asking) == 5
    assert {task.pool for task in asking} == {"default_pool"}
    # Airflow would fill a field of that name with what the run was started with.
    approvals = [task for task in asking if not task.is_mapped and task.params]
    assert [task.task_id for task in approvals] == ["approve_license", "approve_release"]
    assert not any(set(task.params) & set(task.dag.params) for task in approvals)


def test_each_model_has_its_own(parsed):
    dags = parsed(faq=FILE.format(name="faq"), billing=FILE.format(name="billing"))
    assert set(dags) == {f"{kind}__{name}" for kind in KINDS for name in ("billing", "faq")}
    main = dags["finetune_to_production__faq"]
    assert {task.owner for task in main.tasks} == {"support-ml"}
    # One release of a model at a time; another model's runs are another DAG's.
    assert main.max_active_runs == 1
    assert main.params["data"] == "s3://bucket/faq.jsonl"
    assert main.get_task("prepare_run").op_args == ("faq",)
    assert [user["id"] for user in main.get_task("approve_release").assigned_users] == ["alice"]
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
    # Other DAGs may follow a model's datasets and releases.
    outlets = {task.task_id: [a.name for a in task.outlets] for task in main.tasks if task.outlets}
    expected = {"final_audit": ["dataset__faq"], "promote": ["released_model__faq"]}
    assert outlets == expected
    assert main.get_task("promote").outlets == dags["rollback__faq"].tasks[0].outlets
    for dag in (main, logs):
        assert {"tier-1", "faq", "llm"} <= dag.tags
        assert dag.access_control == {"support": {"DAGs": {"can_read", "can_edit"}}}


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


# Runs that DAGs start, and tasks of two models over one store.

MODELS = ("hr", "support")
AT = datetime(2026, 11, 29, 2, tzinfo=UTC)


SOURCE = "settings: {{data: {{source: {data}}}}}\nnightly: {{schedule: '0 2 * * *'}}\n"


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """The folder of two model files, and their DAGs."""
    folder = tmp_path_factory.mktemp("models")
    for name in MODELS:
        turns = [{"role": "user", "content": name}, {"role": "assistant", "content": "b"}]
        data = folder / f"{name}.jsonl"
        data.write_text(json.dumps({"messages": turns}) + "\n")
        (folder / f"{name}.yaml").write_text(SOURCE.format(data=data))
    return folder, dags_in(folder)


class Site:
    """The DAGs of two models over one store, whose tasks run in this process."""

    def __init__(self, dags, api, monkeypatch):
        self.dags, self.api, self._patch = dags, api, monkeypatch

    def task(self, dag_run, task_id, pulled=None):
        """Carry out a task of a run; what it returns."""
        task = self.dags[dag_run.dag_id].get_task(task_id)
        identity = (dag_run.dag_id, dag_run.run_id, task_id)
        ti = SimpleNamespace(
            dag_id=dag_run.dag_id,
            run_id=dag_run.run_id,
            task_id=task_id,
            xcom_pull=lambda task_ids: (pulled or {})[task_ids],
            xcom_push=lambda key, value: self.api.xcoms.update({(*identity, key): value}),
        )
        params = {name: param.value for name, param in task.dag.params.items()}
        context = {"dag_run": dag_run, "ti": ti, "params": params}
        scope = inspect.unwrap(task.python_callable).__globals__
        self._patch.setitem(scope, "get_current_context", lambda: context)
        return task.python_callable(*task.op_args)

    def night(self, model):
        """Carry out the first tasks of a night; the id of the run that it starts, or its note."""
        dag_id = f"nightly_retraining__{model}"
        night = SimpleNamespace(dag_id=dag_id, run_id=f"scheduled__{AT:%FT%T}", run_after=AT)
        decided = self.task(night, "compare_data")
        if decided is None:
            return self.api.notes[dag_id, night.run_id]
        return self.task(night, "start_run", {"compare_data": decided})

    def prepare(self, model, run_id, user="admin", **conf):
        """Carry out `prepare_run` of a run that the API was asked for; the run."""
        dag_id = f"finetune_to_production__{model}"
        dag_run = SimpleNamespace(
            dag_id=dag_id,
            run_id=run_id,
            conf=self.api.confs.get((dag_id, run_id), {}) | conf,
            triggering_user_name=user,
            run_type="manual",
        )
        return Run.open(self.task(dag_run, "prepare_run"))


@pytest.fixture
def site(family, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_STORE", (tmp_path / "store").as_uri())
    monkeypatch.setenv("TUNELINE_MODELS", str(family[0]))
    with airflow_api() as (url, records):
        monkeypatch.setenv("AIRFLOW_CONN_TUNELINE_API", records.connection(url))
        yield Site(family[1], records, monkeypatch)


def test_two_models_at_one_schedule_are_both_trained(site):
    started = {model: site.night(model) for model in MODELS}
    assert started == {model: f"nightly__2026-11-29T02-00-00__{model}" for model in MODELS}
    runs = [site.prepare(model, run_id) for model, run_id in started.items()]
    assert [run.config.name for run in runs] == list(MODELS)
    # The release of a run is found by the id of the run in Airflow.
    assert [run.run_id for run in runs] == list(started.values())
    for model, run in zip(MODELS, runs, strict=True):
        assert f"not trained: {run.run_id} is under way" in site.night(model)


def conclude(run, folder, why="", measured=()):
    """Leave the evidence of a step that raised, or of one that measured something."""
    ctx = StepContext(run, "holdout_performance", *(folder / n for n in ("out", "raw", "scratch")))
    for place in (ctx.out, ctx.quarantine, ctx.scratch):
        place.mkdir(parents=True, exist_ok=True)
    store_output(ctx, failed(ctx, why, "retryable") if why else Lab.entry(ctx, measured))


def test_a_night_that_died_is_tried_again_and_one_that_was_judged_is_not(site, family, tmp_path):
    path = family[0] / "hr.yaml"
    right = path.read_text()
    path.write_text(right.replace("settings: {", "settings: {profile: production, "))
    with pytest.raises(AirflowFailException, match="min_metric is not set"):
        site.prepare("hr", site.night("hr"))
    path.write_text(right)
    run_id = site.night("hr")
    run = site.prepare("hr", run_id)
    site.api.runs["finetune_to_production__hr", run_id] = "failed"
    # It ended before any step, or in one that raised.
    assert site.night("hr") == run_id
    conclude(run, tmp_path, "the registry is lost")
    assert site.night("hr") == run_id
    said = site.api.notes["nightly_retraining__hr", f"scheduled__{AT:%FT%T}"]
    assert f"{run_id} came to no verdict on them (holdout_performance (fail): " in said
    conclude(run, tmp_path, measured=[measure("gain_lower", 0.0, "share", ">", 0.1)])
    assert f"by {run_id}, which was not released (holdout_performance (fail)" in site.night("hr")
    path.write_text(right.replace("settings: {", "settings: {training: {r: 4}, "))
    assert site.night("hr") == run_id
    path.write_text(right)


def test_people_may_use_one_run_id_with_two_models(site):
    runs = [site.prepare(model, "monday", user="alice") for model in MODELS]
    assert [run.run_id for run in runs] == ["monday__hr", "monday__support"]
    # A task that is tried again finds its own run; another run's is not taken over.
    assert site.prepare("hr", "monday", user="alice").run_id == "monday__hr"
    with pytest.raises(AirflowFailException, match="belongs to monday of finetune_to_production__"):
        site.prepare("hr", "monday__hr", user="alice")


def test_a_run_that_a_dag_starts_was_started_by_nobody(site):
    run_id = site.night("hr")
    dag_id = "finetune_to_production__hr"
    conf = site.api.confs[dag_id, run_id]
    # What a person sees in the form, and what only DAGs say.
    params = site.dags[dag_id].params
    assert set(conf) - set(params) == {"trigger"}
    for name in set(conf) - {"trigger"}:
        params.get_param(name).resolve(conf[name])
    # Airflow takes back what a task has pushed when it tries the task again.
    place = tuple(conf["trigger"].values())
    said = site.api.xcoms.pop((*place, "starts"))
    site.api.tasks[place] = "running"
    with pytest.raises(RetryableError, match=r"start_run of .* is tried again"):
        site.prepare("hr", run_id)
    site.api.xcoms[*place, "starts"] = said
    run = site.prepare("hr", run_id)
    assert run.meta["started_by"] is None
    assert run.meta["trigger"] == {
        "dag_id": "nightly_retraining__hr",
        "run_id": "scheduled__2026-11-29T02:00:00",
        "task_id": "start_run",
    }


PRODUCTION = {**IN_PRODUCTION, "approval": True}
# By whom a run is started, and what its conf claims.
NIGHT = {
    "dag_id": "nightly_retraining__hr",
    "run_id": "scheduled__2026-11-29T02:00:00",
    "task_id": "start_run",
}
CLAIMS = {
    "anything": ("alice", {"x": 1}),
    "a real night": ("alice", NIGHT),
    "a real night, as the user of the connection": ("admin", NIGHT),
    "a real night, in its own run": ("alice", NIGHT),
    "a night that is not there": ("admin", {**NIGHT, "run_id": "../../x"}),
    "no mapping": ("admin", "nightly"),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_whoever_claims_that_a_dag_started_a_run_may_not_approve_it(site, claim):
    user, trigger = CLAIMS[claim]
    own, overrides = site.night("hr"), json.dumps(PRODUCTION)
    run_id = own if "own run" in claim else "mine"
    run = site.prepare("hr", run_id, user, trigger=trigger, overrides=overrides)
    assert run.meta["started_by"] == user
    assert "trigger" not in run.meta
    run.meta["approvers"] = [user, "bob"]
    assert "started the run" in why_not(run, Person(user, "7"))
    assert why_not(run, Person("bob", "8")) is None


def test_a_run_that_nobody_could_release_is_refused_at_once(site, family):
    path = family[0] / "hr.yaml"
    right = path.read_text()
    content = yaml.safe_load(right)
    settings = merge(content["settings"], PRODUCTION)
    path.write_text(yaml.safe_dump({**content, "settings": settings, "approvers": ["alice"]}))
    refused = pytest.raises(AirflowFailException, match="name more in `approvers`")
    try:
        with refused:
            site.prepare("hr", site.night("hr"))
        with refused:
            site.prepare("hr", "mine", "alice")
        assert site.prepare("hr", "other", "bob").meta["approvers"] == ["alice"]
        # Nothing was left, so a cleared task finds what was added.
        two = {**content, "settings": settings, "approvers": ["alice", "bob"]}
        path.write_text(yaml.safe_dump(two))
        assert approvals_needed(site.prepare("hr", site.night("hr"))) == 2
    finally:
        path.write_text(right)


def test_a_curated_day_is_announced_and_red_if_it_fails(family, tmp_path, monkeypatch):
    store, notes = open_store((tmp_path / "store").as_uri()), []
    monkeypatch.setenv("TUNELINE_MODELS", str(family[0]))
    check = family[1]["production_logs__hr"].get_task("check_day")
    # A day that does not add up fails in its pod, so that nothing is announced.
    assert check.upstream_task_ids == {"curate"}
    chosen = {"store": store.uri, "day": DAY.isoformat(), "asked_by": None}
    ti = SimpleNamespace(xcom_pull=lambda task_ids: {"choose_day": chosen}[task_ids])
    scope = check.python_callable.__globals__
    monkeypatch.setitem(scope, "get_current_context", lambda: {"ti": ti})
    monkeypatch.setitem(scope, "leave_note", lambda _, note: notes.append(note))

    def announced(verdict):
        counts = {"summary": "a day", "requests_in": 4, "rows_kept": 4}
        day = DAY.isoformat()
        evidence = CurationEvidence(model="hr", day=day, verdict=verdict, **counts)
        publish(store, "hr", DAY, evidence, tmp_path)
        return list(check.python_callable("hr"))

    with pytest.raises(AirflowFailException, match="was not curated"):
        list(check.python_callable("hr"))
    (metadata,) = announced(Verdict.WARN)
    assert metadata.extra == {"day": DAY.isoformat(), "asked_by": None}
    judge = family[1]["production_logs__hr"].get_task("judge_day")
    judge.python_callable("hr")
    # A log that is incomplete is red, and watched for what it has.
    assert len(announced(Verdict.FAIL)) == 1
    with pytest.raises(AirflowFailException, match="a day"):
        judge.python_callable("hr")
    chosen["asked_by"] = "drift_watch"
    judge.python_callable("hr")
    assert notes == [f"{DAY}: a day"] * 2


def test_a_watch_that_compares_nothing_for_a_week_is_red(site):
    report = {"until": "2026-03-04", "verdict": "fail", "summary": "not compared for 7 days"}
    store = open_store(os.environ["TUNELINE_STORE"])
    store.put_bytes("drift/hr/looks/2026-03-04/report.json", json.dumps(report).encode())
    look = SimpleNamespace(dag_id="drift_watch__hr", run_id="look:1", run_after=AT)
    with pytest.raises(AirflowFailException, match="not compared for 7 days"):
        site.task(look, "decide", {"choose_days": {"store": store.uri, "until": "2026-03-04"}})
