"""`make demo`: a whole run, its verdicts and the released model, served; and `make review`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from tuneline.artifacts.data import DATASET
from tuneline.artifacts.governance import PointerName
from tuneline.artifacts.releases import pointer_of
from tuneline.asking.rows import answer_limit
from tuneline.config import check_sections, read_yaml
from tuneline.config.data import SAMPLE
from tuneline.data.tables.rows import VALIDATION, Message, read_dataset
from tuneline.errors import EXIT_FAILED, EXIT_OK, TunelineError, UserError
from tuneline.launch import check_inputs, config_from_fields
from tuneline.people.terminal import check_terminal
from tuneline.run import Run
from tuneline.serving.following.release import newest_release
from tuneline.stack import airflow, serving, timings, tracking
from tuneline.stack.layout import Layout, Say
from tuneline.stack.lifecycle import Stack
from tuneline.stack.runs import DagRun, follow
from tuneline.stack.services import held
from tuneline.store import open_store

_PRESET = "laptop"

REVIEW_COMMAND = "make review"


def demo(layout: Layout, data: str, config: str, say: Say) -> int:
    """Run the pipeline on a dataset, or on the sample; return the exit code.

    Raises:
        UserError: if a file or a setting is wrong, a port is taken or a demo runs already.
    """
    layout.make_home()
    with held(layout.home / "demo.lock", "a demo"):
        stack = Stack(layout, say)
        client = airflow.client_of(layout)
        run: DagRun | None = None
        try:
            fields, pointer = _fields(data, config)
            began = time.monotonic()
            start(stack, pointer, say)
            started_in = time.monotonic() - began
            run = DagRun(client, datetime.now(UTC).strftime("demo-%Y%m%d-%H%M%S"))
            run.trigger(fields)
            say(f"run {run.run_id} started; follow it at {layout.ui_url} ({_login(layout)})")
            say(f"live metrics in MLflow: {tracking.address(layout)}")
            state = follow(run, say)
            return _finish(stack, run, state, started_in, say)
        except KeyboardInterrupt:
            say("interrupted: stopping what this call started …")
            _stop(stack, run)
            raise
        finally:
            client.close()


def start(stack: Stack, pointer: PointerName, say: Say) -> None:
    """Start the stack, and serve what a pointer names."""
    with stack.starting():
        serving.check_port(stack)
        stack.up()
        serving.serve(stack, pointer, say)
        if "scheduler" in stack.started:
            stack.end_active_runs()


def _stop(stack: Stack, run: DagRun | None) -> None:
    if run is not None:
        # If Airflow is stopped as well, its pods end with it.
        with contextlib.suppress(TunelineError):
            run.stop()
    stack.stop_started()


def _fields(data: str, config: str) -> tuple[dict[str, Any], PointerName]:
    """Fill the form and validate it before anything is started; also what the run will move."""
    settings = read_yaml(Path(config).expanduser()) if config else {}
    check_sections(settings, config)
    named = bool(settings.get("data", {}).get("source"))
    if data and "://" not in data:
        data = str(Path(data).expanduser().absolute())
    elif not data and not named:
        data = SAMPLE
    fields = {
        "data": data,
        "preset": _PRESET,
        "reason": "demo",
        "overrides": yaml.safe_dump(settings, allow_unicode=True) if settings else "",
    }
    made = config_from_fields(fields, config or None, names={"data": "DATA"})
    check_inputs(made)
    return fields, pointer_of(made.profile)


def _finish(stack: Stack, run: DagRun, state: str, started_in: float, say: Say) -> int:
    """Print the outcome, and serve the model if it was released."""
    layout = stack.layout
    uri = run.run_uri()
    found = Run.open(uri) if uri else None
    document = timings.breakdown(run.tasks(), found, setup=_setup_seconds(layout), start=started_in)
    timings.write(document, layout.home / "runs" / run.run_id)
    if found is None:
        say(f"the run ended ({state}) before it began; see {layout.ui_url}")
        return EXIT_FAILED
    print(flush=True)
    verdicts = subprocess.run(
        [str(layout.ml_bin / "tuneline"), "checklist", found.uri], check=False
    ).returncode
    print(flush=True)
    say(timings.summary(document))
    show_addresses(layout)
    if found.find_evidence("holdout_performance") is not None:
        print(
            f"\nCompare its answers with the base's yourself, blind:  {REVIEW_COMMAND}", flush=True
        )
    if state != "success" or verdicts:
        say("the model was not released: a critical item failed or the run broke")
        return EXIT_FAILED
    _chat(stack, found, say)
    return EXIT_OK


def _chat(stack: Stack, run: Run, say: Say) -> None:
    """Serve the released model and ask it a question that it was not trained on."""
    pointer = pointer_of(run.config.profile)
    newest = newest_release(open_store(stack.layout.store), which=pointer)
    if newest is None:
        raise TunelineError("the run succeeded, but the store holds no released model")
    with stack.changing():
        serving.serve(stack, pointer, say)
    serving.await_served(stack, newest.name, newest.version)
    say(f"the gateway serves {newest.name} {newest.version}: {stack.layout.gateway_url}/v1")
    question = _question(run)
    body = {
        "model": newest.name,
        "messages": question,
        "temperature": 0,
        "max_tokens": answer_limit(run),
    }
    answer, _ = serving.ask(stack.layout, body)
    print(f"\nQuestion: {question[-1]['content']}\nAnswer:   {answer}\n")
    print(f"Ask it yourself:\n  {serving.curl_line(stack.layout, body)}\n")
    print(f"or on a page, with the same key:  {stack.layout.gateway_url}/\n", flush=True)


def _question(run: Run) -> list[Message]:
    """Return a conversation that was not trained on, without its last answer."""
    with tempfile.TemporaryDirectory(prefix="tuneline-") as folder:
        path = Path(folder) / DATASET.name
        run.store.get_file(run.step_key(DATASET.step, DATASET.name), path)
        rows, _ = read_dataset(path)
    return next(row.prompt for row in rows if row.split == VALIDATION)


def show_addresses(layout: Layout) -> None:
    """Print where the services are, and how to get in."""
    print(f"\nAirflow UI: {layout.ui_url}  {_login(layout)}")
    print(f"MLflow:     {tracking.address(layout)}")
    print(f"Gateway:    {layout.gateway_url}  API key {serving.api_key(layout)}", flush=True)


def _login(layout: Layout) -> str:
    return f"user {airflow.USER}, password {airflow.password(layout)}"


def _setup_seconds(layout: Layout) -> float:
    try:
        return float(json.loads((layout.home / "setup.json").read_text())["seconds"])
    except (FileNotFoundError, ValueError, KeyError):
        return 0.0


def review(layout: Layout) -> int:
    """Open the review of the last run that has answers to compare; return its exit code.

    Raises:
        UserError: if there is no such run, or no terminal.
    """
    check_terminal()
    run = last_run(layout.store)
    print(f"the review of {run.uri}", flush=True)
    command = [str(layout.ml_bin / "tuneline"), "review", "vote", "--run", run.uri]
    return subprocess.run(command, check=False).returncode


def last_run(store_uri: str) -> Run:
    """Return the run that was made last among those whose hold-out was answered.

    Raises:
        UserError: if there is none.
    """
    store = open_store(store_uri)
    made = sorted(
        (json.loads(store.get_bytes(key))["created_at"], key.removesuffix("/run.json"))
        for key in store.keys("runs")
        if key.count("/") == 2 and key.endswith("/run.json")
    )
    for _, prefix in reversed(made):
        if store.exists(f"{prefix}/evaluation/holdout_performance/evidence.json"):
            return Run.open(store.uri_of(prefix))
    raise UserError(
        f"no run in {store_uri} has answers to compare; `make demo` makes one on sample data"
    )
