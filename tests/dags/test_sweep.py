"""Mapped tasks after real pods: one for each rank of a sweep, one for each part dealt to people."""

import json
from pathlib import Path

import pytest
from tests.lab.dag_runs import run_dag
from tests.lab.pods import IMAGE, Server
from tests.lab.runs import Lab
from tests.lab.tasks import connection

ROOT = Path(__file__).parents[2]

# Stands for the command line in the image: notes what it was called with.
TUNELINE = """#!/bin/sh
echo "$@" >> {calls}
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
@pytest.mark.parametrize("ranks", [[8, 16], []])
def test_each_rank_asked_for_has_a_pod_and_what_follows_goes_on(pods, tmp_path, ranks):
    """With a sweep, people are asked about 12 rows too, in two forms; without it about none."""
    settings = {"training": {"sweep_r": ranks}, "pods": {"memory": "64Mi"}}
    lab = Lab(tmp_path, {**settings, "data": {"pii_review": "ask" if ranks else None}})
    row = {"row_hash": "h", "stratum": "other", "weight": 1.0, "text": "user: hello"}
    sheet = {"draw_id": "0" * 12, "rows": [{**row, "row_id": str(n)} for n in range(12)]}
    lab.leave("pii_scrubbing", {"review_sheet.json": json.dumps(sheet)})
    run = lab.run
    printed = run_dag(
        Path(__file__).parent / "dags" / "sweep_dag.py",
        tmp_path / "airflow",
        PYTHONPATH=str(ROOT / "include"),
        AIRFLOW_CONN_KUBERNETES_DEFAULT=connection(pods, "default"),
        RUN_URI=run.uri,
        TUNELINE_POD_POLL_SECONDS="1",
    )
    states = [tuple(entry) for entry in printed]
    assert ("lora_selection", -1, "success", None) in states
    calls = (tmp_path / "calls").read_text().splitlines()
    scrubbed = f"step pii_scrubbing --run {run.uri}"
    forms = [entry[:3] for entry in states if entry[0] == "review_rows"]
    if ranks:
        assert forms == [("review_rows", 0, "success"), ("review_rows", 1, "success")]
        # The UI names each by its rank.
        trials = [("sweep", i, "success", f"r = {r}") for i, r in enumerate(ranks)]
        assert [entry for entry in states if entry[0] == "sweep"] == trials
        trials = [f"run sweep --r {r} --run {run.uri}" for r in ranks]
        assert sorted(calls) == sorted([scrubbed, *trials])
    else:
        assert forms == [("review_rows", -1, "skipped")]
        assert ("sweep", -1, "skipped", None) in states
        assert calls == [scrubbed]
