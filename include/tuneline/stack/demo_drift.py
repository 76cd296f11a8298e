"""`make demo-drift`: six days of requests in minutes, drift, labels, a retraining, a release.

The stack has a separate home and a clock that the demo moves on from day to day. So the DAGs run
by their schedules, and dates in the store and the UI are those of the story.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from tuneline.artifacts.releases import current_release, pointer_of
from tuneline.artifacts.request_log import read_day
from tuneline.config import Model
from tuneline.config.data import SAMPLE
from tuneline.data.sample import WEEK
from tuneline.errors import EXIT_FAILED, EXIT_OK, TunelineError, UserError
from tuneline.files import private_folder
from tuneline.governance.production.curated_days import open_day
from tuneline.governance.production.drift_look import read_look
from tuneline.governance.retraining.drift import Look
from tuneline.governance.retraining.nightly import why_kept
from tuneline.governance.retraining.outcome import read_outcome
from tuneline.machine.airflow_api import AirflowApi
from tuneline.stack import airflow, clock, serving
from tuneline.stack.demo import show_addresses, start
from tuneline.stack.layout import Layout, Say, main_dag_id, main_model
from tuneline.stack.lifecycle import Stack
from tuneline.stack.runs import DagRun, follow
from tuneline.stack.services import held
from tuneline.store import Store, open_store

_NAME, _HOME = "support-intents", "drift-demo"
# With `review_per_key` at 10, people see all 80 rows of a day of eight of them.
_CLIENTS = 8
# As many requests as two cores answer at once.
_AT_ONCE = 2
_MORNING_HOURS = 6
_DAY_SECONDS, _BEAT_SECONDS = 900, 120
_LABELLER = "demo"
_MODEL_FILE = f"""\
# Written by `make demo-drift`. All else is as the laptop preset and the defaults say.
settings:
  data:
    source: {SAMPLE}
    # Also of the reviewed requests, about which a person would be asked.
    license: Apache-2.0
    # More than the preset's: the new version, which learns a kind more, is compared with the
    # released one on the rows that were not labelled with its answer in view. 61 did not decide.
    holdout_share: 0.19
    max_holdout_rows: 130
    max_train_rows: 430
  training:
    learning_rate: 7.0e-4  # for the more steps of more rows
"""


@dataclass(frozen=True)
class Request:
    """A request of a client, and the answer that would be right."""

    messages: list[dict[str, str]]
    right: str

    @property
    def kind(self) -> str:
        """What the right answer's `intent` says."""
        return intent_of(self.right)


@dataclass
class Week:
    """The stack, its model, and what happened so far."""

    stack: Stack
    client: AirflowApi
    store: Store
    model: Model
    requests: dict[int, list[Request]]
    days: list[date]
    say: Say
    keys: list[str] = field(default_factory=list)
    sent: dict[str, Request] = field(default_factory=dict)  # by request id
    runs: dict[str, float] = field(default_factory=dict)  # seconds of each run of the main DAG
    retrained: bool = False

    def dag(self, kind: str) -> str:
        """Return the id of one of the model's DAGs."""
        return kind + self.model.suffix


def demo_drift(layout: Layout, data: str, config: str, say: Say) -> int:
    """Live through the week; return the exit code.

    Args:
        data: JSON lines with `day` (1 to 6) and `messages`, of which the last is the right answer;
            the week that ships without it.
        config: a model file; one of the sample without it.

    Raises:
        UserError: if a file is wrong, a port is taken or a demo runs already.
        TunelineError: if a part of the stack does not do its work in time.
    """
    if not clock.environment():
        raise UserError("the demo needs a clock that it can move; start it with `make demo-drift`")
    requests = read_week(Path(data).expanduser() if data else WEEK)
    began = time.monotonic()
    with held(layout.home.with_suffix(".lock"), "the demo of drift"), _stack(layout, say) as stack:
        model = _model(config)
        clock.move_to(None)
        # No night of the story may come by itself, however long the runs take.
        today = (datetime.now(UTC) - timedelta(hours=_MORNING_HOURS + 1)).date()
        days = [today - timedelta(days=len(requests) - n) for n in range(len(requests) + 1)]
        _move_to(days[0])
        start(stack, pointer_of(model.profile), say)
        client, store = airflow.client_of(layout), open_store(layout.store)
        week = Week(stack, client, store, model, requests, days, say)
        code = _live(week)
        clock.move_to(None)
        say(_summary(week, time.monotonic() - began))
        show_addresses(layout)
        print("`make down` stops it", flush=True)
        return code


@contextlib.contextmanager
def _stack(layout: Layout, say: Say) -> Iterator[Stack]:
    """Remove what an earlier demo left, and stop what is started if the block is interrupted."""
    if layout.home.name != _HOME:
        raise UserError(f"the demo empties its home, which must be named {_HOME}: {layout.home}")
    if layout.home.exists():
        Stack(layout, say).down()
        shutil.rmtree(layout.home)
        say(f"removed what the demo before had left in {layout.home}")
    private_folder(layout.home)
    stack = Stack(layout, say)
    try:
        yield stack
    except KeyboardInterrupt:
        say("interrupted: stopping what this call started …")
        stack.stop_started()
        raise


def _model(config: str) -> Model:
    """Write the model's file; UserError if it is wrong."""
    folder = Path(os.environ["TUNELINE_MODELS"])
    folder.mkdir(parents=True, exist_ok=True)
    text = Path(config).expanduser().read_text() if config else _MODEL_FILE
    (folder / f"{_NAME}.yaml").write_text(text)
    model = main_model()
    if model.problem:
        raise UserError(model.problem)
    return model


def read_week(path: Path) -> dict[int, list[Request]]:
    """Read the requests of each day, from 1 on without a gap; UserError names a wrong line."""
    found: dict[int, list[Request]] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            *asked, last = row["messages"]
            request = Request(
                [{k: turn[k] for k in ("role", "content")} for turn in asked], str(last["content"])
            )
            found.setdefault(int(row["day"]), []).append(request)
        except (ValueError, LookupError, TypeError):
            raise UserError(f"{path}, line {number}: expected `day` and `messages`") from None
    if sorted(found) != [*range(1, len(found) + 1)] or not found:
        raise UserError(f"{path}: days are counted from 1 without a gap, not {sorted(found)}")
    return found


def intent_of(answer: str) -> str:
    """Return the `intent` of an answer, the answer itself if it has none."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(json.loads(answer)["intent"])
    return answer.strip()


def _live(week: Week) -> int:
    """Release a first version, then live through the days; return the exit code."""
    say, first = week.say, DagRun(week.client, "first" + week.model.suffix)
    say(f"{week.days[0]}: making the first version: {_url(week, main_dag_id(), first.run_id)}")
    first.trigger({"reason": "the first version"})
    if not _released(week, first):
        return EXIT_FAILED
    week.keys = [serving.add_client(week.stack.layout, f"shop-{n + 1}") for n in range(_CLIENTS)]
    for number, day in enumerate(week.days[:-1], 1):
        _ask(week, number, day)
        _move_to(week.days[number])
        _night(week, day)
    if not week.retrained:
        say("no second version was released; the notes of drift_watch and of its run say why")
    return EXIT_OK if week.retrained else EXIT_FAILED


def _move_to(day: date) -> None:
    clock.move_to(datetime(day.year, day.month, day.day, _MORNING_HOURS, tzinfo=UTC))


def _ask(week: Week, number: int, day: date) -> None:
    """Send the requests of a day, and wait until all are in the log."""
    requests, ids = week.requests[number], dict[str, Request]()

    def send(at: int) -> bool:
        body = {"model": week.model.name, "messages": requests[at].messages, "temperature": 0}
        key = week.keys[at % _CLIENTS]
        text, request_id = serving.ask(week.stack.layout, {**body, "max_tokens": 64}, key)
        ids[request_id] = requests[at]
        return intent_of(text) == requests[at].kind

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        right = list(pool.map(send, range(len(requests))))
    known = {request.kind for request in week.requests[1]}
    new = [ok for request, ok in zip(requests, right, strict=True) if request.kind not in known]
    of_new = f"; of {len(new)} of a new kind {sum(new)}" if new else ""
    release = current_release(week.store, week.model.name)
    version = release.version if release else "nothing"
    week.say(f"{day}: {len(right)} requests to {version}, {sum(right)} answered right{of_new}")
    week.sent |= ids
    logged = partial(read_day, week.store, week.model.name, day)
    _until(lambda: logged().num_rows >= len(requests), f"the log of {day}", _BEAT_SECONDS)


def _night(week: Week, day: date) -> None:
    """Wait for what the schedule starts after a day; on drift label and retrain."""
    name, store = week.model.name, week.store
    _until(lambda: open_day(store, name, day) is not None, f"the curation of {day}")
    curated = open_day(store, name, day)
    week.say(f"{day}: curated: {curated.evidence.summary if curated else 'nothing'}")
    _until(lambda: _look(week, day) is not None, f"a look at {day}")
    look = _look(week, day)
    assert look is not None
    week.say(f"{day}: {'DRIFT: ' if look.drifted else ''}{look.summary}")
    _until(lambda: bool(_asking(week)) or not _active(week), f"the end of the look at {day}")
    run_id = _asking(week)
    if run_id is not None:
        _retrain(week, run_id)


def _retrain(week: Week, run_id: str) -> None:
    """Label the drifted days from the file, let drift_watch go on, and follow its retraining."""
    dag, say = week.dag("drift_watch"), week.say
    days = week.client.xcom(dag, run_id, "decide")["days"]
    say(f"backfilled {days}; the question for labels: {_url(week, dag, run_id)}/tasks/label_rows")
    _label(week, days)
    _settle(week)
    path = f"/dags/{dag}/dagRuns/{run_id}/taskInstances/label_rows/-1/hitlDetails"
    asked = week.client.call("GET", path).json()
    fields = dict.fromkeys(asked["params"])
    week.client.call("PATCH", path, chosen_options=["Go on without"], params_input=fields)
    say("answered the question with `Go on without`: the labels are in the store")
    drift = DagRun(week.client, run_id, dag)
    _until(lambda: drift.state() in ("success", "failed"), "the end of drift_watch")
    outcome = read_outcome(week.store, dag, run_id)
    say(f"{dag}: {outcome.text if outcome else drift.state()}")
    started = week.client.xcom(dag, run_id, "start_retraining")
    if started:
        say(f"retraining: {_url(week, main_dag_id(), str(started))}")
        week.retrained = _released(week, DagRun(week.client, str(started)))


def _label(week: Week, days: str) -> None:
    """Write the rows in review, fill in what the week's file says, and store the labels."""
    home = week.stack.layout.home
    sheet, filled = home / "review.jsonl", home / "labels.jsonl"
    _tuneline(week, "logs", "review", "--days", days, "--out", str(sheet))
    lines = [_decided(week, json.loads(line)) for line in sheet.read_text().splitlines()]
    filled.write_text("".join(json.dumps(line) + "\n" for line in lines))
    _tuneline(week, "logs", "label", str(filled), "--by", _LABELLER)


def _decided(week: Week, row: dict[str, Any]) -> dict[str, Any]:
    """Accept an answer with the right intent, and correct others."""
    request = week.sent[row["request_id"]]
    if intent_of(row["answer"]) == request.kind:
        return {**row, "decision": "accept"}
    return {**row, "decision": "correct", "answer_corrected": request.right}


def _tuneline(week: Week, *words: str) -> None:
    layout = week.stack.layout
    command = [*words, "--store", layout.store, "--model", week.model.name]
    week.say(f"$ tuneline {shlex.join(command)}")
    subprocess.run([str(layout.ml_bin / "tuneline"), *command], check=True)


def _released(week: Week, run: DagRun) -> bool:
    """Follow a run of the main DAG; return True if it was released and is served."""
    began = time.monotonic()
    state = follow(run, lambda line: week.say(f"  {line}"))
    week.runs[run.run_id] = time.monotonic() - began
    name, pointer = week.model.name, current_release(week.store, week.model.name)
    if state != "success" or pointer is None or pointer.version != run.run_id:
        week.say(f"{run.run_id} was not released: {why_kept(week.store, run.run_id)[0]}")
        return False
    serving.await_served(week.stack, name, run.run_id)
    week.say(f"released and served: {name} {run.run_id}")
    return True


def _look(week: Week, day: date) -> Look | None:
    try:
        return read_look(week.store, week.model.name, day)
    except UserError:
        return None


def _asking(week: Week) -> str | None:
    """Return the run of drift_watch that waits for labels."""
    path = f"/dags/{week.dag('drift_watch')}/dagRuns/~/taskInstances?state=awaiting_input"
    found = week.client.call("GET", path).json()["task_instances"]
    return str(found[0]["dag_run_id"]) if found else None


def _active(week: Week) -> bool:
    path = "/dags/~/dagRuns?state=running&state=queued&limit=1"
    return bool(week.client.call("GET", path).json()["total_entries"])


def _settle(week: Week) -> None:
    """Wait until the scheduler knows that the question's task has left its worker.

    Airflow 3.3 takes an answer that comes sooner for a failure. No person is that fast.
    """

    def beat() -> str:
        return str(week.client.health()["scheduler"]["latest_scheduler_heartbeat"])

    def beats_after(last: str) -> bool:
        return beat() != last

    for _ in range(2):
        _until(partial(beats_after, beat()), "the scheduler", _BEAT_SECONDS)


def _until(condition: Callable[[], bool], what: str, seconds: float = _DAY_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TunelineError(f"waited {seconds:.0f} s for {what}; the UI shows what runs")
        time.sleep(1)


def _url(week: Week, dag: str, run_id: str) -> str:
    return f"{week.stack.layout.ui_url}/dags/{dag}/runs/{run_id}"


def _summary(week: Week, seconds: float) -> str:
    runs = ", ".join(f"{name} {spent:.0f} s" for name, spent in week.runs.items())
    rest = seconds - sum(week.runs.values())
    return f"{seconds:.0f} s in all: the runs {runs}; all else {rest:.0f} s"
