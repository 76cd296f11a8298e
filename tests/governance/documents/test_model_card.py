"""The model card claims what the evidence holds, and says what it does not."""

import json
from hashlib import sha256

import pytest
from huggingface_hub import ModelCard
from tests.governance.conftest import HOLDS, MEASURED, SHIPPED
from tests.governance.documents.conftest import DATASET, HOLDOUT, NO_GAIN, facts, folder

from tuneline.evidence import measure
from tuneline.governance.documents.model_card import card_data
from tuneline.models.base_model import digest_of
from tuneline.step import leave_killed


def card(lab):
    return ModelCard.load(folder(lab) / "README.md")


def section(text, title):
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_hub_reads_what_was_measured(documented):
    found = card(documented())
    assert found.data.license == "unknown"
    assert found.data.datasets == ["team/rows"]
    assert found.data.pipeline_tag == "text-generation"
    assert {"lora", "gguf", "llama_cpp"} <= set(found.data.tags)
    assert found.data.model_name == "model"
    [result] = found.data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.9167)
    assert (result.dataset_type, result.dataset_split) == ("team/rows", "holdout")
    table = section(found.text, "What was measured")
    assert "| intent accuracy | hold-out | 16 | 0.9167 | 0.8045 to 0.9671 | 0.3333 |" in table
    assert "Every item that was measured holds its limits." in section(found.text, "Limits")
    # A bar in a file's name would have ended the cell of a table.
    assert "/data/rows\\|1.jsonl: licence CC-BY-4.0" in section(found.text, "Training data")


def test_the_card_has_a_request_as_it_was_measured(documented):
    """A code fence in the system turn does not end the block of the request."""
    shared = {**DATASET, "system": "Answer with JSON.\n```\nAnd kindly."}
    files = {**SHIPPED["final_audit"], "dataset.json": json.dumps(shared)}
    lab = documented(lambda lab: lab.leave("final_audit", files, [HOLDS]))
    asked = section(card(lab).text, "How to ask it")
    turns = [{"role": "system", "content": shared["system"]}, {"role": "user", "content": "…"}]
    stated = asked[asked.index("{") : asked.rindex("}") + 1]
    assert json.loads(stated) == {"messages": turns, "temperature": 0}


def test_a_planted_failure_stands_on_the_card(documented):
    lab = documented(
        lambda lab: lab.leave("holdout_performance", {}, [*HOLDOUT, NO_GAIN, MEASURED])
    )
    limits = section(card(lab).text, "Limits")
    assert "`holdout_performance` (critical) **fail**: gain_lower is -0.0731" in limits
    assert "holds its limits" not in limits


def test_an_item_that_was_not_run_is_named_and_claims_nothing(finished_lab):
    lab = finished_lab(name="model", without="holdout_performance")
    lab.execute("lineage")
    found = card(lab)
    assert found.data.eval_results is None
    assert "No quality of this model was measured" in section(found.text, "What was measured")
    missing = section(found.text, "What was not measured")
    assert "`holdout_performance` (critical) **not_run**" in missing
    assert "No item measures accuracy for groups of persons" in missing


def test_a_step_that_broke_is_named_as_not_measured(documented):
    def change(lab):
        leave_killed(lab.run.uri, "holdout_performance", "its pod was killed", {})
        lab.leave("human_review", {}, [measure("votes", 12, "votes", ">=", 1)])

    found = card(documented(change))
    assert found.data.eval_results is None
    missing = section(found.text, "What was not measured")
    assert "`holdout_performance` (critical) **fail**" in missing
    assert "No person has compared" not in found.text


@pytest.mark.parametrize("sha256", ["0" * 64, None])
def test_a_number_of_other_bytes_is_left_out(documented, sha256):
    stated = measure("candidate_sha256", sha256, "sha256")
    lab = documented(lambda lab: lab.leave("holdout_performance", {}, [*HOLDOUT, HOLDS, stated]))
    found = card(lab)
    assert found.data.eval_results is None
    assert "0.9167" not in found.text
    assert "The numbers of `holdout_performance` are left out" in found.text
    assert "No person has compared answers of this model" in found.text


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("GPL-3.0-only", {"license": "gpl-3.0"}),
        ("LicenseRef-llama3.1", {"license": "llama3.1"}),
        ("LicenseRef-ours", {"license": "other", "license_name": "ours"}),
    ],
)
def test_a_licence_is_named_as_the_hub_names_it(documented, declared, expected):
    found = card_data(facts(documented(governance={"model_license": declared})))
    stated = {name: getattr(found, name) for name in ("license", "license_name")}
    assert {name: value for name, value in stated.items() if value} == expected


def test_a_checkpoint_is_known_by_the_hash_of_its_files(documented):
    files = {"merged/tokenizer.json": "{}", "merged/config.json": "{}", "merged/w.safetensors": "w"}
    hashes = {
        name.removeprefix("merged/"): sha256(text.encode()).hexdigest()
        for name, text in files.items()
    }
    choice = {"variant": "f16", "engine": "vllm", "sha256": digest_of(hashes)}
    stated = measure("candidate_sha256", digest_of(hashes), "sha256")

    def change(lab):
        lab.leave("export_candidate", files)
        lab.leave("production_quantization", {"choice.json": json.dumps(choice)}, [HOLDS])
        lab.leave("holdout_performance", {}, [*HOLDOUT, HOLDS, stated])

    lab = documented(change)
    assert set(facts(lab).model_files) == {f"model/{name}" for name in hashes}
    [result] = card(lab).data.eval_results
    assert result.metric_value == 0.9167
