"""Mapped tasks after real pods: for each rank of a sweep, each shard, each part dealt to people."""

import json
from pathlib import Path

import pytest
from tests.lab.dag_runs import run_dag
from tests.lab.pods import IMAGE, Server
from tests.lab.runs import Lab
from tests.lab.tasks import connection

from tuneline.evidence import measure

# In place of the command line in the image: notes what it was called with; one pod fails once.
TUNELINE = """#!/bin/sh
echo "$@" >> {calls}
case "$*" in *"--shard 1 "*) if mkdir {calls}.failed; then
  echo "retryable: the engine died" > $TERMINATION_MESSAGE_PATH
  exit 75
fi;; esac
"""


@pytest.fixture
def pods(tmp_path):
    """A pod API whose image has a `tuneline` that only notes its arguments."""
    tools = tmp_path / "image"
    tools.mkdir()
    command = tools / "tuneline"
    command.write_text(TUNELINE.format(calls=tmp_path / "calls"))
    command.chmod(0o755)
    server = Server(tmp_path)
    server.images.write_text(json.dumps({"images": {IMAGE: {"path_prepend": [str(tools)]}}}))
    server.start()
    yield server
    server.stop()


@pytest.mark.stack
@pytest.mark.parametrize("ranks", [[8, 16], pytest.param([], marks=pytest.mark.long)])
def test_each_rank_asked_for_has_a_pod_and_what_follows_goes_on(pods, tmp_path, ranks):
    """With a sweep three pods answer the hold-out, and people are asked about 12 rows in two forms.

    Without it one pod answers, and nobody is asked.
    """
    shards = 3 if ranks else 1
    settings = {"training": {"sweep_r": ranks}, "pods": {"memory": "64Mi"}}
    settings |= {"evaluation": {"shards": shards}}
    lab = Lab(tmp_path, {**settings, "data": {"pii_review": "ask" if ranks else None}})
    row = {"row_hash": "h", "stratum": "other", "weight": 1.0, "text": "user: hello"}
    sheet = {"draw_id": "0" * 12, "rows": [{**row, "row_id": str(n)} for n in range(12)]}
    lab.leave("pii_scrubbing", {"review_sheet.json": json.dumps(sheet)})
    lab.leave("license_audit", {}, [measure("ok", True, "flag", "==", True)])
    run = lab.run
    printed = run_dag(
        Path(__file__).parent / "dags" / "sweep_dag.py",
        tmp_path / "airflow",
        AIRFLOW_CONN_KUBERNETES_DEFAULT=connection(pods, "default"),
        RUN_URI=run.uri,
        TUNELINE_POD_POLL_SECONDS="1",
        TUNELINE_RETRY_SECONDS="1",
    )
    states = [tuple(entry) for entry in printed]
    assert ("lora_selection", -1, "success", None) in states
    calls = (tmp_path / "calls").read_text().splitlines()
    assert ("holdout_performance", -1, "success", None) in states
    first = [f"run build-engine --run {run.uri}", f"step pii_scrubbing --run {run.uri}"]
    forms = [entry[:3] for entry in states if entry[0] == "review_rows"]
    if ranks:
        assert forms == [("review_rows", 0, "success"), ("review_rows", 1, "success")]
        # The UI names each by its rank.
        trials = [("sweep", i, "success", f"r = {r}") for i, r in enumerate(ranks)]
        assert [entry for entry in states if entry[0] == "sweep"] == trials
        trials = [f"run sweep --r {r} --run {run.uri}" for r in ranks]
        answers = [("answer_holdout", i, "success", f"shard {i}") for i in range(shards)]
        assert [entry for entry in states if entry[0] == "answer_holdout"] == answers
        # The one that failed was tried again, alone.
        parts = [f"run answer --shard {n} --run {run.uri}" for n in (0, 1, 1, 2)]
        assert sorted(calls) == sorted([*first, *trials, *parts])
    else:
        assert forms == [("review_rows", -1, "skipped")]
        assert ("sweep", -1, "skipped", None) in states
        assert ("answer_holdout", -1, "skipped", None) in states
        assert sorted(calls) == sorted(first)
