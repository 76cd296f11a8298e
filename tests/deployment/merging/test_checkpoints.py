"""Losses of the merged model: those of the engine, and of QLoRA's adapter on its 4-bit base."""

import json
import math
import shutil

import pytest
from tests.deployment.conftest import files_below
from tests.lab.runs import broken, values

from tuneline.artifacts.training import Plan
from tuneline.deployment import adapter_merging
from tuneline.deployment.merging.checkpoints import (
    ScoredRows,
    compare_adapter,
    compare_engine,
    rows_that_decide,
)
from tuneline.errors import TunelineError
from tuneline.evidence import conclude
from tuneline.gguf.export import export_gguf
from tuneline.statistics import Interval, RowLosses
from tuneline.store import sha256_file
from tuneline.training import checkpointing


def execute(lab):
    return lab.execute("adapter_merging", adapter_merging.run)


def changed(folder, target, change):
    """A copy of a checkpoint whose weights were changed in place."""
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(folder, target)
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_a_norm_that_is_a_little_off_in_the_gguf_is_seen(exported_lab, tiny_models, tmp_path):
    """Every answer stays the same; only the perplexity tells."""

    def scale(weights):
        weights["model.norm.weight"] *= 1.02

    other = changed(tiny_models.merged, tmp_path / "other", scale)
    wrong = export_gguf(other, tmp_path / "wrong.gguf").path
    evidence = execute(exported_lab({"candidate.gguf": wrong}))
    assert evidence.verdict == "fail"
    assert broken(evidence) == {"engine_perplexity_change"}
    assert values(evidence)["engine_same_answers"] == 1.0
    assert values(evidence)["engine_as_transformers"] == 1.0


@pytest.fixture
def qlora_lab(exported_lab, tiny_models):
    """A run of QLoRA whose adapter checkpointing has measured on the 4-bit base."""

    def make(replaced=None, **overrides):
        lab = exported_lab(replaced, training={"qlora": True}, **overrides)
        plan = Plan(
            micro_batch=4,
            accumulation=1,
            world_size=1,
            effective_batch=4,
            threads=1,
            device="cpu",
            precision="bf16",
            estimate={},
        )
        lab.leave("gradient_accumulation", {"plan.json": plan.model_dump_json()})
        kept = sha256_file(tiny_models.adapter / "adapter_model.safetensors")
        entry = {"step": 1, "eval_loss": 1.0, "eval_loss_error": 0.1, "adapter_sha256": kept}
        document = json.dumps({"best_step": 1, "evaluations": [entry]})
        files = files_below(tiny_models.adapter, "adapter")
        lab.leave("train", {**files, "checkpoints.json": document})
        lab.execute("checkpointing", checkpointing.run)
        return lab

    return make


def test_a_faithful_merge_after_qlora_passes(qlora_lab):
    evidence = execute(qlora_lab())
    assert evidence.verdict == "pass", broken(evidence)
    found = values(evidence)
    assert found["rows_scored"] == 30
    assert found["adapter_on_4bit_perplexity"] > 1
    assert found["merge_loss"] < found["merge_loss_upper"] <= 0.05
    assert "on its 4-bit base, as trained" in evidence.summary


def test_a_merge_at_a_wrong_scale_after_qlora_is_seen(qlora_lab, tiny_models, tmp_path):
    """Merged at twice its strength, as an export that applies alpha/r again does."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    strong = shutil.copytree(tiny_models.adapter, tmp_path / "strong")
    settings = json.loads((strong / "adapter_config.json").read_text())
    settings["lora_alpha"] *= 2
    (strong / "adapter_config.json").write_text(json.dumps(settings))
    base = AutoModelForCausalLM.from_pretrained(tiny_models.base, dtype=torch.float32)
    merged = shutil.copytree(tiny_models.merged, tmp_path / "merged")
    PeftModel.from_pretrained(base, strong).merge_and_unload().half().save_pretrained(merged)
    wrong = export_gguf(merged, tmp_path / "wrong.gguf").path
    replaced = {**files_below(merged, "merged"), "candidate.gguf": wrong}
    evidence = execute(qlora_lab(replaced))
    assert evidence.verdict == "fail"
    assert "merge_loss_upper" in broken(evidence)
    assert values(evidence)["merge_loss"] > 0.05
    # The file is a faithful copy of the wrong weights.
    assert "engine_perplexity_change" not in broken(evidence)


def test_without_losses_of_the_adapter_the_price_is_not_known(exported_lab):
    evidence = execute(exported_lab(training={"qlora": True}))
    assert evidence.verdict == "inconclusive"
    assert broken(evidence) == {"merge_loss_upper"}
    assert "checkpointing left no losses of the adapter; run it again" in evidence.summary


def test_losses_of_another_adapter_do_not_count(qlora_lab):
    lab = qlora_lab()
    document = lab.document("checkpointing", "losses.json")
    lab.leave("checkpointing", {"losses.json": json.dumps({**document, "adapter_sha256": "0"})})
    evidence = execute(lab)
    assert evidence.verdict == "inconclusive"
    assert "are of another adapter" in evidence.summary


def test_rows_with_other_tokens_than_in_training_stop_the_step(qlora_lab):
    lab = qlora_lab()
    document = lab.document("checkpointing", "losses.json")
    document["targets"][3] += 1
    lab.leave("checkpointing", {"losses.json": json.dumps(document)})
    with pytest.raises(TunelineError, match="learned tokens with the merged model's tokenizer"):
        execute(lab)


def losses(*sums, weights=None):
    return RowLosses(sums, (10,) * len(sums), weights or (1.0,) * len(sums))


def scored(found):
    return ScoredRows(("a",) * len(found.sums), (), (), found)


def verdict(parity):
    return conclude(parity.measurements)


def test_an_engine_that_tells_no_losses_is_not_measured():
    found = compare_engine("Some engine", losses(10.0, 12.0), None)
    assert verdict(found) == "pass"
    assert "Some engine does not tell" in found.sentence
    assert not any(m.rule for m in found.measurements)


def test_the_engine_must_be_near_both_ways():
    merged = losses(10.0, 12.0, 9.0, 11.0)
    for shift, expected in ((0.0, "pass"), (0.05, "fail"), (-0.05, "fail"), (math.nan, "fail")):
        found = compare_engine("it", merged, [s + shift for s in merged.sums])
        assert verdict(found) == expected, shift
    # Right on average, but not row by row.
    scattered = [s + d for s, d in zip(merged.sums, (1, -1, 1, -1), strict=True)]
    assert verdict(compare_engine("it", merged, scattered)) == "fail"


def test_the_upper_end_of_the_merge_loss_decides():
    merged = losses(10.0, 12.0, 9.0, 11.0)

    def against(*changes):
        adapter = losses(*(s - c for s, c in zip(merged.sums, changes, strict=True)))
        return compare_adapter(scored(merged), adapter, 0.1)

    assert verdict(against(0.2, 0.25, 0.15, 0.2)) == "pass"
    assert verdict(against(2.0, 2.2, 1.9, 2.1)) == "fail"
    wide = against(4.0, -3.0, 3.0, -2.0)
    assert verdict(wide) == "inconclusive"
    assert "validation rows would decide" in wide.sentence
    assert verdict(against(-1.0, -1.1, -0.9, -1.0)) == "pass"
    assert verdict(compare_adapter(scored(losses(1.0)), losses(1.0), 0.1)) == "inconclusive"


def test_the_weights_of_rows_count_in_the_merge_loss():
    heavy = losses(9.0, 12.0, weights=(1000.0, 1.0))
    found = compare_adapter(scored(losses(10.0, 12.0)), heavy, 0.2)
    by_name = {m.name: m.value for m in found.measurements}
    assert by_name["merge_loss"] == pytest.approx(math.exp(0.1) - 1, rel=0.01)


def test_more_rows_are_asked_for_where_the_limit_is_near():
    near = rows_that_decide(Interval(1.09, 1.0, 1.2, 0.05), 40, 0.1)
    far = rows_that_decide(Interval(1.02, 0.92, 1.12, 0.05), 40, 0.1)
    assert near > far > 40
