"""Production in a real stack: days of logs, drift, a backfill that outlives a crash, retraining.

A model is released. Three ordinary days are curated and start nothing; two days of other questions
are found, backfilled, labelled, and a retraining follows. The night after has nothing new.
"""

import json
import os
import signal
import time
from datetime import UTC, datetime, timedelta

import pytest
from tests.lab.logged import logged, put
from tests.lab.releases import backdate
from tests.lab.whole_runs import TINY, finish, trigger

from tuneline.artifacts.data import DATASET
from tuneline.artifacts.releases import read_release
from tuneline.config import merge
from tuneline.data.tables.rows import read_dataset
from tuneline.governance.production.curated_days import open_day
from tuneline.run import Run
from tuneline.stack.airflow import client_of
from tuneline.stack.runs import DagRun
from tuneline.stack.services import ServiceTable
from tuneline.store import open_store

pytestmark = [pytest.mark.stack, pytest.mark.long, pytest.mark.model, pytest.mark.timeout(3600)]

MODEL = "support-intents"
MAIN, LOGS, DRIFT, NIGHTLY = (
    f"{kind}__{MODEL}"
    for kind in ("finetune_to_production", "production_logs", "drift_watch", "nightly_retraining")
)
TODAY = datetime.now(UTC).date()
# The model is released before the first of them.
DAYS = [TODAY - timedelta(days=n) for n in range(6, 0, -1)]
ORDINARY, DRIFTED = DAYS[:3], DAYS[3:5]
ROWS = 80
OTHER = (
    "please write a poem about the {0} rivers of mongolia",
    "solve the integral of x to the power of {0}",
    "who won the {0}th chess olympiad and where was it played",
    "translate the {0}th verse of the odyssey into portuguese",
)


class Production:
    """A stack with one model file, its API, and what its DAGs have done."""

    def __init__(self, commands, client, folder):
        self.commands, self.client, self.folder = commands, client, folder
        self.store = open_store(commands.layout().store)

    def log(self, day, prompts, answers):
        rows = [
            logged(n, prompt, answer, day=day, model=MODEL)
            for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        ]
        put(self.store, rows, self.folder, model=MODEL)

    def backfill(self, days, **conf):
        """Curate days as a person does it from the UI."""
        body = {
            "dag_id": LOGS,
            "from_date": f"{days[0]}T00:00:00Z",
            "to_date": f"{days[-1]}T23:59:59Z",
            "reprocess_behavior": "completed",
            "max_active_runs": 1,
            "dag_run_conf": conf,
        }
        self.until(lambda: self._started(body), "a database that is not locked")

    def _started(self, body):
        """Start a backfill; Airflow asks to try again where SQLite is busy."""
        answer = self.client.call("POST", "/backfills", ok=(503,), **body)
        assert answer.is_success or "locked" in answer.text, answer.text
        return answer.is_success

    def backfills(self):
        answer = self.client.call("GET", f"/backfills?dag_id={LOGS}&order_by=id&limit=50")
        return answer.json()["backfills"]

    def runs(self, dag):
        answer = self.client.call("GET", f"/dags/{dag}/dagRuns?limit=100&order_by=run_after")
        return answer.json()["dag_runs"]

    def tasks(self, dag, run_id):
        path = f"/dags/{dag}/dagRuns/{run_id}/taskInstances?limit=200"
        found = self.client.call("GET", path).json()["task_instances"]
        return {task["task_id"]: task["state"] for task in found}

    def told(self):
        """Return what each look did, and the tasks that failed in it, for a message."""
        return [
            (run["dag_run_id"], run["state"], run["note"], self.failures(DRIFT, run["dag_run_id"]))
            for run in self.runs(DRIFT)
        ]

    def failures(self, dag, run_id):
        states = self.tasks(dag, run_id)
        return {
            name: state for name, state in states.items() if state in ("failed", "up_for_retry")
        }

    def settle(self, dag, seconds=600):
        """Wait until no run of a DAG is active."""
        self.until(
            lambda: all(run["state"] in ("success", "failed") for run in self.runs(dag)),
            f"the end of {dag}",
            seconds,
        )

    def until(self, condition, what, seconds=600):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}: {self.told()}"
            time.sleep(2)

    def crash(self, name):
        """Kill a service, and start it again."""
        layout = self.commands.layout()
        process = ServiceTable(layout.services, layout.home / "logs").find(name)
        os.kill(process.pid, signal.SIGKILL)
        time.sleep(2)
        up = self.commands.run("up")
        assert up.returncode == 0, up.stdout + up.stderr


@pytest.fixture(scope="module")
def production(tmp_path_factory, make_commands, sample):
    folder = tmp_path_factory.mktemp("production")
    (folder / "models").mkdir()
    made = make_commands(folder / "home")
    made.env["TUNELINE_MODELS"] = str(folder / "models")
    settings = merge(TINY, {"data": {"source": str(sample), "pii_ner": False}})
    document = {
        "settings": settings,
        "logs": {"schedule": "15 0 * * *"},
        "curation": {"review_novel": 10, "review_random": 5},
        "drift": {"min_reviewed": 3, "cool_down_days": 2},
    }
    (folder / "models" / f"{MODEL}.yaml").write_text(json.dumps(document))
    up = made.run("up")
    assert up.returncode == 0, up.stdout + up.stderr
    client = client_of(made.layout())
    with pytest.MonkeyPatch.context() as patch:
        # For the id of the main DAG.
        patch.setenv("TUNELINE_MODELS", str(folder / "models"))
        yield Production(made, client, folder)
    client.close()
    made.run("down")


@pytest.fixture(scope="module")
def released(production):
    """The first release, as if it were a week old, and the questions that it knows."""
    run = trigger(production.client, "first", "", {})
    state, _, failures = finish(run, 1500)
    assert state == "success", failures
    pointer = read_release(production.store, MODEL, "staging")
    assert pointer.version == f"first__{MODEL}"
    backdate(production.store, MODEL, f"{TODAY - timedelta(days=7)}T00:00:00Z", "staging")
    opened = Run.open(run.run_uri())
    path = production.folder / "dataset.parquet"
    (ref,) = [r for r in opened.entry(DATASET.step).artifacts if r.name == DATASET.name]
    opened.store.get_file(opened.store.key_of(ref.uri), path)
    rows, _ = read_dataset(path, holdout=True)
    return [(row.messages[-2]["content"], row.messages[-1]["content"]) for row in rows]


@pytest.fixture(scope="module")
def ordinary(production, released):
    """Three days of questions like those of the dataset, curated."""
    for number, day in enumerate(ORDINARY):
        rows = [released[(n * 3 + number) % len(released)] for n in range(ROWS)]
        production.log(day, *zip(*rows, strict=True))
    production.backfill(ORDINARY)
    production.until(lambda: all(b["completed_at"] for b in production.backfills()), "the days")
    production.until(lambda: looked_at(production, ORDINARY[-1]), "a look at the third day")
    production.settle(DRIFT)


def looked_at(production, day):
    return production.store.exists(f"drift/{MODEL}/looks/{day}/report.json")


def test_ordinary_days_start_nothing(production, ordinary):
    for day in ORDINARY:
        curated = open_day(production.store, MODEL, day)
        assert curated.evidence.verdict == "pass"
        assert production.store.exists(f"{curated.prefix}/data_docs/index.html")
    assert [run["dag_run_id"] for run in production.runs(MAIN)] == ["first"]
    notes = [run["note"] or "" for run in production.runs(DRIFT)]
    assert any("look like the training data" in note for note in notes), notes
    assert all("asked_by" not in (b["dag_run_conf"] or {}) for b in production.backfills())


def test_drifted_days_are_backfilled_once_labelled_and_retrained(production, ordinary, released):
    for number, day in enumerate(DRIFTED):
        rows = [(OTHER[n % 4].format(n + 100 * number), '{"intent": "track"}') for n in range(ROWS)]
        production.log(day, *zip(*rows, strict=True))
    production.backfill(DRIFTED)

    def own():
        return [b for b in production.backfills() if (b["dag_run_conf"] or {}).get("asked_by")]

    production.until(lambda: own(), "the backfill that drift starts", 900)
    # Airflow dies in the middle of it.
    production.crash("scheduler")
    production.until(lambda: own() and all(b["completed_at"] for b in own()), "its end", 900)

    watching = next(r for r in production.runs(DRIFT) if r["state"] == "running")
    run_id = watching["dag_run_id"]
    answer_labels(production, run_id)
    production.settle(DRIFT, 900)

    assert len(own()) == 1, (own(), production.told())
    (backfill,) = own()
    assert backfill["dag_run_conf"]["asked_by"] == f"{DRIFT}/{run_id}"
    assert backfill["dag_run_conf"]["sample"] == 1.0
    # The first drifted day shows it already; the next one falls into the cool-down.
    first, last = backfill["from_date"][:10], backfill["to_date"][:10]
    assert first == str(DRIFTED[0])
    assert last in map(str, DRIFTED)
    tasks = production.tasks(DRIFT, run_id)
    ran = ("compare", "decide", "backfill", "label_rows", "keep_labels", "start_retraining")
    assert {name: tasks[name] for name in ran} == dict.fromkeys(ran, "success")
    note = next(r["note"] for r in production.runs(DRIFT) if r["dag_run_id"] == run_id)
    assert "drift since" in note
    assert "with 4 reviewed rows" in note

    started = production.runs(MAIN)[1:]
    assert [run["dag_run_id"] for run in started] == [f"drift__{last}__{MODEL}"]
    conf = started[0]["conf"]
    assert conf["reason"].startswith(f"drift of {first}")
    assert conf["trigger"]["report"].endswith("report.json")
    finish(DagRun(production.client, f"drift__{last}__{MODEL}"), 1500)
    retrained = Run.open(production.store.uri_of(f"runs/drift__{last}__{MODEL}"))
    assert retrained.meta["started_by"] is None
    assert any("reviewed/" in address for address in retrained.config.data.sources)


def answer_labels(production, run_id):
    """Answer the review task as a person does in the UI."""
    path = f"/dags/{DRIFT}/dagRuns/{run_id}/taskInstances/label_rows/-1"
    details = f"{path}/hitlDetails"
    production.until(
        lambda: production.client.call("GET", details, ok=(404,)).is_success,
        "the question for labels",
        600,
    )
    fields = dict.fromkeys(production.client.call("GET", details).json()["params"])
    decisions = [name for name in fields if name.startswith("decision_")][:4]
    production.client.call(
        "PATCH",
        details,
        chosen_options=["Send labels"],
        params_input={**fields, **dict.fromkeys(decisions, "accept")},
    )


def test_the_night_after_has_nothing_new(production, released):
    production.client.call(
        "POST", f"/dags/{NIGHTLY}/dagRuns", dag_run_id="night", logical_date=None, conf={}
    )
    production.settle(NIGHTLY)
    (night,) = production.runs(NIGHTLY)
    assert night["state"] == "success"
    assert "not trained" in night["note"]
    assert len(production.runs(MAIN)) == 2
