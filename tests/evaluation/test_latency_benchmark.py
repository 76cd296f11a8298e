import json

import pytest
from tests.lab.tiny_models import make_model
from tests.lab.tiny_task import task_rows

from tuneline.errors import UserError
from tuneline.evaluation import latency_benchmark
from tuneline.gguf.export import export_gguf
from tuneline.harness import load_client
from tuneline.harness.hardware import Machine, is_target
from tuneline.serving.engines.llama_cpp.engine import LlamaServer

H100 = Machine("CPU", 16, 128, ("NVIDIA H100 80GB HBM3",))
LAPTOP = Machine("CPU", 2, 24, ())


def run(bench):
    evidence = bench.execute("latency_benchmark", latency_benchmark.run)
    return evidence, {m.name: m for m in evidence.measurements}


def test_a_fast_server_passes_with_table_and_plot(scored_lab):
    bench = scored_lab(deployment={"context_tokens": 256})
    evidence, found = run(bench)
    assert evidence.verdict == "pass", [m for m in evidence.measurements if m.ok is False]
    assert found["levels"].value == 4
    assert found["concurrency_within_objective"].value == 8
    reader = bench.context("prepare_review")
    document = json.loads(reader.input("latency_benchmark", "latency.json").read_text())
    levels = {row["concurrency"]: row for row in document["levels"]}
    assert list(levels) == [1, 2, 4, 8]
    assert all(row["tokens_per_s"] > 0 and row["ttft_p50"] > 0 for row in levels.values())
    # Four slots: alone the engine decodes one request, at eight at most four together.
    assert levels[1]["batch"] == pytest.approx(1.0, abs=0.05)
    assert 1.5 < levels[8]["batch"] <= 4.0
    assert reader.input("latency_benchmark", "latency.png").read_bytes()[:4] == b"\x89PNG"
    assert "requests at once within" in evidence.summary


def test_an_objective_that_is_missed_fails(scored_lab):
    bench = scored_lab(evaluation={"max_ttft_seconds": 1e-5})
    evidence, found = run(bench)
    assert evidence.verdict == "fail"
    assert found["concurrency_within_objective"].value == 0
    assert "does not reach" in evidence.summary


def test_requests_that_fail_fail_the_item(scored_lab):
    """A context of 64 tokens holds no prompt of the task with its answer."""
    rows = task_rows({"train": 240, "validation": 30, "holdout": 48})
    for row in rows[240:270]:
        row["messages"][1]["content"] += " and so on" * 40
    evidence, found = run(scored_lab(rows=rows, deployment={"context_tokens": 64}))
    assert evidence.verdict == "fail"
    assert found["failed_requests"].value > 0


@pytest.fixture(scope="session")
def silent_gguf(tmp_path_factory):
    """A model that ends every answer before its first word."""
    folder = tmp_path_factory.mktemp("silent")
    model = make_model(folder / "hf")
    head = model.get_output_embeddings().weight
    end, pad = model.config.eos_token_id, model.config.pad_token_id
    # Both end an answer, and one of the two opposite rows wins whatever the input is.
    head.data[end] = 10 * head.data[end]
    head.data[pad] = -head.data[end]
    model.save_pretrained(folder / "hf")
    export_gguf(folder / "hf", folder / "silent.gguf")
    return folder / "silent.gguf"


def test_a_model_that_ends_at_once_still_gives_every_request_its_tokens(scored_lab, silent_gguf):
    with LlamaServer(silent_gguf, threads=1) as server, server.client() as client:
        said = client.chat([{"role": "user", "content": "hello"}], max_tokens=8)
    assert (said.text, said.finish_reason) == ("", "stop")
    evidence, found = run(scored_lab(model=silent_gguf))
    assert found["failed_requests"].value == 0
    assert evidence.verdict == "pass", [m for m in evidence.measurements if m.ok is False]


def test_a_server_that_ends_answers_early_fails(scored_lab, silent_gguf, monkeypatch):
    monkeypatch.setattr(load_client, "_SAME_WORK", {})
    evidence, found = run(scored_lab(model=silent_gguf))
    assert evidence.verdict == "fail"
    assert found["failed_requests"].value > 0


def test_other_hardware_than_the_target_only_warns(scored_lab):
    bench = scored_lab(deployment={"target_hardware": "nvidia-h100"})
    evidence, found = run(bench)
    assert evidence.verdict == "warn"
    assert (found["measured_on"].value, found["measured_on"].limit) == ("cpu", "nvidia-h100")


def test_targets_are_matched_by_name_and_by_what_computed():
    assert is_target("nvidia-h100", H100, on_gpu=True)
    assert not is_target("nvidia-h100", H100, on_gpu=False)
    assert not is_target("nvidia-a10", H100, on_gpu=True)
    assert not is_target("nvidia-h100", LAPTOP, on_gpu=False)
    assert is_target("laptop-cpu", LAPTOP, on_gpu=False)
    assert not is_target("laptop-cpu", H100, on_gpu=True)


def test_prompts_come_from_validation_and_nowhere_else(scored_lab):
    bench = scored_lab(rows=task_rows({"train": 20, "holdout": 5}))
    with pytest.raises(UserError, match="validation"):
        run(bench)
