"""Production in a real stack: a release by two people, nights, days of logs, drift, retraining.

A first run is red. A second one is released by its waivers and by another person than its starter.
A night whose model is not shown to be as good moves nothing. Three ordinary days are curated and
start nothing; two days of other questions are found, backfilled, labelled by two people, and a
retraining follows. The night after has nothing new.
"""

import json
import os
import signal
import subprocess
import time
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
import yaml
from tests.lab.logged import logged, put
from tests.lab.releases import backdate
from tests.lab.runs import IN_PRODUCTION
from tests.lab.site import Users
from tests.lab.whole_runs import TINY_BASE, finish, tiny_task

from tuneline.artifacts.answers import rules_key
from tuneline.artifacts.data import DATASET
from tuneline.artifacts.release_log import read_line
from tuneline.artifacts.releases import pointer_key, read_release
from tuneline.catalogue import ITEMS
from tuneline.config import merge
from tuneline.data.tables.rows import read_dataset
from tuneline.governance.production.curated_days import open_day
from tuneline.governance.retraining.outcome import read_outcome
from tuneline.machine.checkout import project_root
from tuneline.run import Run
from tuneline.stack.airflow import client_of
from tuneline.stack.runs import DagRun
from tuneline.stack.services import ServiceTable
from tuneline.store import open_store
from tuneline.verdicts import checklist

pytestmark = [pytest.mark.stack, pytest.mark.long, pytest.mark.timeout(3600)]

MODEL = "support-intents"
MAIN, LOGS, DRIFT, NIGHTLY = (
    f"{kind}__{MODEL}"
    for kind in ("finetune_to_production", "production_logs", "drift_watch", "nightly_retraining")
)
FIRST = f"first__{MODEL}"
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
WHY = "made-up words, read by the owner"
# The tiny model knows one task and nothing else.
ONE_TASK = {"evaluation": {"max_perplexity_ratio": 100_000}}
SETTINGS = merge(
    IN_PRODUCTION,
    ONE_TASK,
    {
        "approval": True,
        "data": {"max_train_rows": 400, "license": "Apache-2.0"},
        "training": TINY_BASE["training"],
        "evaluation": {"max_new_tokens": 24, "load": {"users": 60, "seconds": 10}},
        "deployment": {"parallel": 2},
    },
)
LEFT = "left_per_1000_rows_PERSON_at_most"
LEAKS = {"data": {"pii_leak_breach": "warn"}}
# Another rate trains another model, as good as the first.
NEXT = merge(LEAKS, {"training": {"learning_rate": 4e-3}})


class Production(Users):
    """A stack with one model file, its API, and what its DAGs have done."""

    def __init__(self, commands, folder):
        layout = commands.layout()
        passwords = json.loads((layout.airflow_home / "passwords.json").read_text())
        super().__init__(layout.ui_url, passwords, "admin")
        self.commands, self.folder = commands, folder
        self.store, self.client = open_store(layout.store), client_of(layout)

    def start(self, user, dag, run_id, **conf):
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf}

        def started():
            # Airflow says 500 while something else has SQLite, before or after it made the run.
            answer = self.call(user, "POST", f"/dags/{dag}/dagRuns", **body)
            assert answer.status_code in (200, 409, 500), answer.text
            return answer.status_code != 500

        self.until(started, f"the start of {run_id}", 60)
        return DagRun(self.client, run_id)

    def log(self, day, prompts, answers):
        by = {"served_by": MODEL, "model_version": FIRST}
        rows = [
            logged(n, prompt, answer, day=day, model=MODEL, **by)
            for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        ]
        put(self.store, rows, self.folder, model=MODEL)

    def backfill(self, days):
        """Curate days as a person does it from the UI."""
        body = {
            "dag_id": LOGS,
            "from_date": f"{days[0]}T00:00:00Z",
            "to_date": f"{days[-1]}T23:59:59Z",
            "reprocess_behavior": "completed",
            "max_active_runs": 1,
        }
        assert self.client.backfill(body)

    def backfills(self):
        return self.client.backfills(LOGS)

    def runs(self, dag):
        answer = self.client.call("GET", f"/dags/{dag}/dagRuns?limit=100&order_by=run_after")
        return answer.json()["dag_runs"]

    def ended(self, dag, seconds=600):
        """Wait until no run of a DAG is active."""
        over = {"success", "failed"}
        self.until(
            lambda: {r["state"] for r in self.runs(dag)} <= over, f"the end of {dag}", seconds
        )

    def crash(self, name):
        """Kill a service, and start it again."""
        layout = self.commands.layout()
        process = ServiceTable(layout.services, layout.home / "logs").find(name)
        os.kill(process.pid, signal.SIGKILL)
        time.sleep(2)
        up = self.commands.run("up")
        assert up.returncode == 0, up.stdout + up.stderr


def configure(folder, version, settings, allowed):
    """Write the model's file, and the policy: the shipped one, for production alone."""
    policy = yaml.safe_load((project_root() / "config" / "policy.yaml").read_text())
    policy |= {"version": version, "profile": "production", "approval": True}
    policy["models"] = {MODEL: allowed}
    (folder / "policy.yaml").write_text(yaml.safe_dump(policy))
    source = {"source": f"{folder}/rows.jsonl"}
    model = {
        "approvers": ["alice", "bob"],
        "settings": merge(settings, {"base_model": f"{folder}/base", "data": source}),
        "curation": {"review_novel": 10, "review_random": 5},
        "drift": {"min_reviewed": 3, "cool_down_days": 2},
    }
    (folder / "models" / f"{MODEL}.yaml").write_text(json.dumps(model))


def committed(folder):
    """Return variables for which this checkout is a clean one, with its changes in a commit."""
    git = {"GIT_DIR": str(folder / "git"), "GIT_WORK_TREE": str(project_root())}
    for command in ("init -q", "add -A", "-c user.name=a -c user.email=a commit -qm all"):
        subprocess.run(["git", *command.split()], env={**os.environ, **git}, check=True)
    return git


@pytest.fixture(scope="module")
def production(tmp_path_factory, make_commands):
    folder = tmp_path_factory.mktemp("production")
    (folder / "models").mkdir()
    tiny_task(folder)
    configure(folder, 5, SETTINGS, ONE_TASK)
    made, git = make_commands(folder / "home"), committed(folder)
    files = {"TUNELINE_MODELS": folder / "models", "TUNELINE_POLICY": folder / "policy.yaml"}
    made.env |= {name: str(path) for name, path in files.items()} | git
    up = made.run("up")
    assert up.returncode == 0, up.stdout + up.stderr
    # Pods have the environment of their image.
    images = made.layout().pods / "images.json"
    content = json.loads(images.read_text())
    images.write_text(json.dumps({**content, "env": content["env"] | git}))
    with pytest.MonkeyPatch.context() as patch:
        # For the id of the main DAG.
        patch.setenv("TUNELINE_MODELS", str(folder / "models"))
        yield Production(made, folder)
    made.run("down")


@pytest.fixture(scope="module")
def released(production):
    """The first release, as if it were a week old, and the questions that it knows."""
    red = production.start("alice", MAIN, "red")
    state, _, failures = finish(red, 600)
    assert (state, list(failures)) == ("failed", ["gate_pii_scrubbing"]), failures
    measured = Run.open(red.run_uri()).find_evidence("pii_scrubbing").measurements
    # The base's made-up words look like names, of some of which the model is in doubt.
    assert [m.name for m in measured if not m.ok and m.on_breach == "fail" and m.rule] == [LEFT]
    accepted = [
        ("pii_scrubbing", LEFT, 100),
        ("base_regression", "drop_upper", 1),
        ("base_regression", "base_above_chance", 0),
    ]
    waivers = [
        {"item": item, "measurement": name, "up_to": up_to, "reason": WHY}
        for item, name, up_to in accepted
    ]
    run = production.start("alice", MAIN, "first", overrides=json.dumps({"waivers": waivers}))
    place = (MAIN, "first", "approve_release")
    production.waits(*place, seconds=1500)
    asked = production.question(*place)
    assert asked["subject"] == f"Release a new version of {MODEL}?"
    assert "one of these approvers has to say yes: bob\n" in asked["body"]
    # Each waiver is shown with what was measured of it.
    shown = asked["body"].replace("\\", "")
    for name in (LEFT, "base_above_chance"):
        assert f"Now waived: waived by alice: {name} is " in shown, shown
    # A stranger, whoever has waived it, and without a reason.
    assert production.answer("admin", *place, "Approve", {"approval_reason": WHY}) == 403
    assert production.answer("alice", *place, "Approve", {"approval_reason": WHY}) == 200
    production.waits(*place, tries=2)
    assert production.answer("bob", *place, "Approve", {"approval_reason": ""}) == 200
    production.waits(*place, tries=3)
    assert read_release(production.store, MODEL) is None
    assert production.answer("bob", *place, "Approve", {"approval_reason": WHY}) == 200
    state, _, failures = finish(run, 600)
    assert state == "success", failures
    backdate(production.store, MODEL, f"{TODAY - timedelta(days=7)}T00:00:00Z", "production")
    opened = Run.open(run.run_uri())
    path = production.folder / "dataset.parquet"
    opened.store.get_file(DATASET.key(opened), path)
    rows, _ = read_dataset(path, holdout=True)
    return [(row.messages[-2]["content"], row.messages[-1]["content"]) for row in rows]


def test_what_is_waived_is_released_by_a_second_person(production, released):
    store = production.store
    run = Run.open(store.uri_of(f"runs/{FIRST}"))
    rows = {row.item: row for row in checklist(run)}
    assert not [row for row in rows.values() if row.verdict in ("fail", "not_run")], rows
    assert len(rows) == len(ITEMS)
    assert rows["pii_scrubbing"].verdict == "waived"
    assert f"waived by alice: {LEFT} is " in rows["pii_scrubbing"].because
    pointer = read_release(store, MODEL)
    assert (pointer.version, read_release(store, MODEL, "staging")) == (FIRST, None)
    events = [read_line(text).event for text in pointer.lines]
    assert (events[-1].by, events[-1].approved_by) == ("alice", "bob")
    assert {(e.by, e.approved_by) for e in events if e.event == "waived"} == {("alice", "bob")}
    rules = json.loads(store.get_bytes(rules_key(MODEL)))
    assert (rules["policy_version"], len(rules["approvers"])) == (5, 2)


def test_a_night_that_does_not_show_enough_moves_nothing_and_says_why(production, released):
    before = production.store.get_bytes(pointer_key(MODEL, "production"))
    # What people have waived becomes the model's rule: waivers don't count at night.
    configure(production.folder, 6, merge(SETTINGS, NEXT), merge(ONE_TASK, LEAKS))
    production.start("alice", NIGHTLY, "undecided", force=True)
    production.ended(NIGHTLY, 1500)
    (night,) = production.runs(NIGHTLY)
    assert night["state"] == "success"
    note = read_outcome(production.store, NIGHTLY, "undecided").text
    assert f"{FIRST} stays: holdout_performance (fail): worse_than_released_by is " in note
    assert "these rows do not decide whether it is worse" in note
    assert production.store.get_bytes(pointer_key(MODEL, "production")) == before


@pytest.fixture(scope="module")
def ordinary(production, released):
    """Three days of questions like those of the dataset, curated."""
    for number, day in enumerate(ORDINARY):
        # Classes take turns in the dataset.
        rows = [released[(n + 11 * number) % len(released)] for n in range(ROWS)]
        production.log(day, *zip(*rows, strict=True))
    production.backfill(ORDINARY)
    production.until(lambda: all(b["completed_at"] for b in production.backfills()), "the days")
    state = f"drift/{MODEL}/{FIRST}/state.json"

    def seen():
        there = production.store.exists(state)
        return there and str(ORDINARY[-1]) in json.loads(production.store.get_bytes(state))["seen"]

    production.until(seen, "a look at the third day", 600)
    production.ended(DRIFT)


def test_ordinary_days_start_nothing(production, ordinary):
    for day in ORDINARY:
        curated = open_day(production.store, MODEL, day)
        assert curated.evidence.verdict == "pass"
        assert production.store.exists(f"{curated.prefix}/data_docs/index.html")
    assert len(production.runs(MAIN)) == 3
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

    (run_id,) = (r["dag_run_id"] for r in production.runs(DRIFT) if r["state"] == "running")
    label(production, run_id)
    production.ended(DRIFT, 900)

    (backfill,) = own()
    assert backfill["dag_run_conf"]["asked_by"] == f"{DRIFT}/{run_id}"
    assert backfill["dag_run_conf"]["sample"] == 1.0
    # The first drifted day shows it already; the next one falls into the cool-down. Yesterday was
    # curated by schedule.
    first, last = backfill["from_date"][:10], backfill["to_date"][:10]
    assert (first, last in map(str, DAYS[3:])) == (str(DRIFTED[0]), True)
    tasks = production.tasks(DRIFT, run_id)
    ran = ("compare", "decide", "backfill", "label_rows", "keep_labels", "start_retraining")
    assert {name: tasks[name, -1]["state"] for name in ran} == dict.fromkeys(ran, "success")
    note = next(r["note"] for r in production.runs(DRIFT) if r["dag_run_id"] == run_id)
    assert "drift since" in note
    assert "with 4 reviewed rows" in note

    started = production.runs(MAIN)[3:]
    assert [run["dag_run_id"] for run in started] == [f"drift__{last}__{MODEL}"]
    conf = started[0]["conf"]
    assert conf["reason"].startswith(f"drift of {first}")
    assert conf["trigger"]["report"].endswith("report.json")
    # Nor are so few rows enough for the new model.
    state, _, failures = finish(DagRun(production.client, f"drift__{last}__{MODEL}"), 1500)
    assert state == "failed"
    assert "worse_than_released_by" in failures["holdout_performance"], failures
    retrained = Run.open(production.store.uri_of(f"runs/drift__{last}__{MODEL}"))
    assert retrained.meta["started_by"] is None
    assert any("reviewed/" in address for address in retrained.config.data.sources)


def label(production, run_id):
    """Answer the question for labels as two people, who have to agree."""
    place = (DRIFT, run_id, "label_rows")
    for number, user in enumerate(("alice", "bob"), 1):
        production.waits(*place)
        fields = dict.fromkeys(production.question(*place)["params"])
        decisions = [name for name in fields if name.startswith("decision_")]
        fields |= dict.fromkeys(decisions[:4], "accept")
        assert production.answer(user, *place, "Send labels", fields) == 200
        answers = partial(production.store.keys, f"quarantine/answers/{MODEL}")
        production.until(lambda n=number, a=answers: len([*a()]) != n - 1, "answers")


def test_the_night_after_has_nothing_new(production, released):
    production.start("alice", NIGHTLY, "night")
    production.ended(NIGHTLY)
    night = production.runs(NIGHTLY)[-1]
    assert "not trained: the same data and settings were tried on" in night["note"], night
