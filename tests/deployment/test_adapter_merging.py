import json
import math
import random
import re
import shutil
from dataclasses import replace

import pytest
from tests.deployment.conftest import files_below
from tests.lab.runs import Lab, broken, values
from tests.lab.tiny_task import conversation, make_tokenizer, task_rows, train

from tuneline.artifacts.deployment import DECISION
from tuneline.artifacts.training import Plan
from tuneline.data.rendering.renderer import Renderer
from tuneline.deployment import adapter_merging
from tuneline.deployment.merging.checkpoints import ScoredRows, compare_adapter, compare_engine
from tuneline.errors import TunelineError
from tuneline.evidence import conclude, measure
from tuneline.gguf.export import export_gguf, export_lora_gguf
from tuneline.models.base_model import load_tokenizer
from tuneline.serving.engines.divergence import ScoredRow, checkpoint_losses
from tuneline.serving.engines.llama_cpp.scoring import sequence_losses
from tuneline.statistics import RowLosses
from tuneline.store import sha256_file

# A rank at which the adapter, not the tiny base, takes the time of a token.
HEAVY_RANK = 4096
SHARING = {"multi_tenant": True, "max_adapter_slowdown": 0.95}


def execute(lab):
    return lab.execute("adapter_merging")


def decision_of(lab):
    return lab.document("adapter_merging", "decision.json")


def change_json(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def change_weights(path, change):
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    save_file(change(weights), path, metadata={"format": "pt"})


def stronger(adapter, target, times):
    """A copy of an adapter at several times its strength."""
    copy = shutil.copytree(adapter, target)
    change_json(
        copy / "adapter_config.json", lambda c: c.update(lora_alpha=c["lora_alpha"] * times)
    )
    return copy


def as_candidate(folder):
    """The file that ships, of another checkpoint."""
    return {"candidate.gguf": export_gguf(folder, folder.with_suffix(".gguf")).path}


def rename_role(folder):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant", "helper"))
    return folder


def test_a_faithful_merge_passes(exported_lab):
    lab = exported_lab()
    evidence = execute(lab)
    assert evidence.verdict == "pass", broken(evidence)
    found = values(evidence)
    assert found["checkpoint_mean_kl"] < 1e-4
    assert found["engine_same_answers"] == found["engine_as_transformers"] == 1.0
    assert (found["rows_compared"], found["rows_scored"]) == (90, 16)
    assert found["engine_rounding_ratio"] < 0.5
    assert "merge_loss_upper" not in found
    assert "llama.cpp is 0." in evidence.summary
    assert decision_of(lab)["decision"] == "merge"
    assert "nothing is left to apply" in decision_of(lab)["reason"]


def wrong_scale(models, target):
    """The adapter at three times its strength, as a converter that forgets alpha/r gives it."""
    strong = stronger(models.adapter, target, 3)
    gguf = export_lora_gguf(strong, models.base, target.with_suffix(".gguf"))
    return {"adapter.gguf": gguf.path}


def lost_adapter(models, target):
    """The merged files are really those of the base."""
    return {
        **files_below(models.base, "merged"),
        **as_candidate(shutil.copytree(models.base, target)),
    }


def skipped_adapter(models, target):
    """An adapter that changes nothing, as an engine answers that finds none of its modules."""
    weak = shutil.copytree(models.adapter, target)
    change_weights(
        weak / "adapter_model.safetensors",
        lambda weights: {name: weight * 0 for name, weight in weights.items()},
    )
    return {"adapter.gguf": export_lora_gguf(weak, models.base, target.with_suffix(".gguf")).path}


def no_effect(models, target):
    """Such an adapter, and a merge of it."""
    return skipped_adapter(models, target) | lost_adapter(models, target.with_name("base"))


def other_template(models, target):
    return as_candidate(rename_role(shutil.copytree(models.merged, target)))


def spoiled(weights=lambda w: w, config=lambda c: None):
    """Return the plant of a file whose weights, or whose configuration, are others."""

    def plant(models, target):
        other = shutil.copytree(models.merged, target)
        change_weights(other / "model.safetensors", weights)
        change_json(other / "config.json", config)
        return as_candidate(other)

    return plant


def scale_norm(weights):
    """Every answer stays the same; only the probabilities show it."""
    weights["model.norm.weight"] *= 1.02
    return weights


def swap_layers(weights):
    swapped = {"layers.0.": "layers.1.", "layers.1.": "layers.0."}
    return {re.sub(r"layers\.[01]\.", lambda m: swapped[m[0]], n): w for n, w in weights.items()}


def turn_otherwise(config):
    config["rope_parameters"]["rope_theta"] *= 10


@pytest.mark.parametrize(
    ("plant", "rules", "found"),
    [
        (wrong_scale, {"engine_logprob_change"}, {}),
        (lost_adapter, {"checkpoint_mean_kl", "engine_same_answers"}, {}),
        (skipped_adapter, {"engine_same_answers", "adapter_answers_as_merged"}, {}),
        (
            no_effect,
            {"checkpoint_mean_kl", "rows_that_the_base_answers_otherwise"},
            {"engine_same_answers": 1.0},
        ),
        (other_template, {"prompts_rendered_otherwise"}, {"prompts_rendered_otherwise": 8}),
        (
            spoiled(scale_norm),
            {"engine_rounding_ratio"},
            {"engine_same_answers": 1.0, "engine_as_transformers": 1.0},
        ),
        (spoiled(swap_layers), {"engine_rounding_ratio"}, {}),
        (spoiled(config=turn_otherwise), {"engine_rounding_ratio"}, {}),
        (lambda models, _: {"candidate.gguf": models.base_gguf}, {"engine_rounding_ratio"}, {}),
    ],
)
def test_a_fault_of_the_export_is_seen(plant, rules, found, exported_lab, tiny_models, tmp_path):
    lab = exported_lab(plant(tiny_models, tmp_path / "planted"), deployment=SHARING)
    evidence = execute(lab)
    assert evidence.verdict == "fail"
    assert rules <= broken(evidence)
    assert values(evidence).items() >= found.items()


@pytest.mark.parametrize(("ties", "verdict"), [(1, "pass"), (2, "warn"), (4, "fail")])
def test_answers_that_differ_by_near_ties_fail_only_all_together(
    exported_lab, monkeypatch, ties, verdict
):
    """transformers answers some of four rows otherwise, with the probabilities of the engine."""
    compare = adapter_merging.compare_checkpoints

    def tied(*folders, **options):
        found = compare(*folders, **options)
        other = ["a near-tie"] * ties
        return replace(found, greedy=(*other, *found.greedy[ties:]))

    monkeypatch.setattr(adapter_merging, "compare_checkpoints", tied)
    evidence = execute(exported_lab())
    assert evidence.verdict == verdict
    assert broken(evidence) == (set() if verdict == "pass" else {"engine_as_transformers"})


@pytest.mark.parametrize(
    ("equal", "witness", "verdict"),
    [
        # Of eight answers: up to two are shown to be below the limit.
        (6, "fail", "pass"),
        (5, "pass", "warn"),
        (5, "fail", "inconclusive"),
        (5, "inconclusive", "inconclusive"),
        (2, "pass", "inconclusive"),
        (2, "inconclusive", "inconclusive"),
        (2, "fail", "fail"),
        (0, "pass", "fail"),
    ],
)
def test_few_equal_answers_fail_with_a_second_witness(equal, witness, verdict):
    held = measure(
        "w", witness == "pass", "", "==", True, on_breach="fail" if witness == "pass" else witness
    )
    answers = [str(number < equal) for number in range(8)]
    assert conclude([adapter_merging.same_answers("n", answers, ["True"] * 8, held)]) == verdict


def test_a_faithful_engine_hardly_ever_fails_by_its_greedy_answers():
    """Near-ties turn three of ten answers; without a witness 35 and 45 % of the runs failed."""
    draw, held = random.Random(0), measure("w", True, "", "==", True)
    for rows in (adapter_merging.CHECKPOINT_ROWS, adapter_merging.ENGINE_ROWS):
        runs = [[str(draw.random() < 0.7) for _ in range(rows)] for _ in range(2000)]
        judged = [
            adapter_merging.same_answers("n", answers, ["True"] * rows, held) for answers in runs
        ]
        assert sum(conclude([found]) == "fail" for found in judged) <= 0.02 * len(runs)


def test_another_tokenizer_in_the_engine_is_seen(exported_lab, tiny_models, tmp_path):
    """The pre-tokenizer of the GGUF file keeps digits together; the rows hold numbers."""

    def keep_digits(document):
        document["pre_tokenizer"] = document["pre_tokenizer"]["pretokenizers"][1]
        model = document["model"]
        unused = next(t for t, i in model["vocab"].items() if i == 799)
        del model["vocab"][unused]
        merges = [*model["merges"], ["1", "2"]]
        model["merges"] = [m for m in merges if "".join(m) != unused and unused not in m]
        model["vocab"]["12"] = 799

    other = shutil.copytree(tiny_models.merged, tmp_path / "other")
    change_json(other / "tokenizer.json", keep_digits)
    lab = exported_lab(as_candidate(other))
    rows = task_rows({"train": 60, "validation": 30, "holdout": 16})
    for row in rows[:5]:
        row["messages"][1]["content"] += " order 1212"
    lab.leave_dataset(rows)
    evidence = execute(lab)
    assert evidence.verdict == "fail"
    assert values(evidence)["rows_tokenised_otherwise"] == 5


def test_many_tenants_keep_adapters_apart_by_policy_and_numbers(exported_lab):
    lab = exported_lab(deployment=SHARING)
    evidence = execute(lab)
    assert evidence.verdict == "pass", broken(evidence)
    found = values(evidence)
    assert (found["decision"], found["decided_as_asked"]) == ("apart", True)
    assert DECISION.read(lab.context("production_quantization")).decision == "apart"
    for form in ("merged", "apart"):
        assert found[f"{form}_tokens_per_s"] > 0
        assert found[f"{form}_memory"] > 1e6
        assert found[f"{form}_failed_requests"] == 0
    lost = 1 - found["apart_tokens_per_s"] / found["merged_tokens_per_s"]
    assert found["adapter_slowdown"] == pytest.approx(lost, abs=1e-3)


def test_an_adapter_that_costs_too_much_is_merged_although_many_share_the_base(
    exported_lab, tiny_models, tmp_path
):
    """The adapter with rows and columns of zeros: the same answers at much more work."""
    import torch

    times = HEAVY_RANK // json.loads((tiny_models.adapter / "adapter_config.json").read_text())["r"]

    def pad(weights):
        for name, weight in weights.items():
            axis = 0 if "lora_A" in name else 1
            zeros = torch.zeros_like(weight).repeat_interleave(times - 1, dim=axis)
            weights[name] = torch.cat([weight, zeros], dim=axis).contiguous()
        return weights

    heavy = stronger(tiny_models.adapter, tmp_path / "heavy", times)
    change_json(heavy / "adapter_config.json", lambda c: c.update(r=HEAVY_RANK))
    change_weights(heavy / "adapter_model.safetensors", pad)
    gguf = export_lora_gguf(heavy, tiny_models.base, tmp_path / "heavy.gguf").path
    sharing = {**SHARING, "max_adapter_slowdown": 0.3}
    lab = exported_lab({"adapter.gguf": gguf}, deployment=sharing)
    lab.leave("train", files_below(heavy, "adapter"))
    evidence = execute(lab)
    assert evidence.verdict == "warn"
    assert broken(evidence) == {"adapter_slowdown", "decided_as_asked"}
    assert "max_adapter_slowdown (30%) allows" in evidence.summary
    assert decision_of(lab)["decision"] == "merge"


def test_a_base_with_another_chat_template_can_not_be_shared(exported_lab, tiny_models, tmp_path):
    """Served as it is, it would put other prompts before the adapter than training did."""
    other = rename_role(shutil.copytree(tiny_models.base, tmp_path / "base"))
    evidence = execute(exported_lab(base_model=str(other), deployment=SHARING))
    assert evidence.verdict == "warn"
    assert broken(evidence) == {"decided_as_asked"}
    assert "0 rows and 8 prompts differ" in values(evidence)["adapter_in_engine"]
    assert values(evidence)["decision"] == "merge"


@pytest.fixture(scope="module")
def dora_adapter(tiny_models, tmp_path_factory):
    """A weight-decomposed adapter that has learned a little: magnitudes moved as well."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_models.base, dtype=torch.float32)
    settings = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", use_dora=True)
    model = get_peft_model(base, settings)
    train(model, make_tokenizer(), 200, 60)
    folder = tmp_path_factory.mktemp("dora")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def dora_lab(exported_lab, dora_adapter):
    """A run that has trained a DoRA adapter and really exported it, or another one for it."""

    def make(exported=None, **deployment) -> Lab:
        lab = exported_lab(training={"dora": True}, deployment=deployment)
        lab.leave("train", files_below(exported or dora_adapter, "adapter"))
        lab.execute("export_candidate")
        if exported is not None:
            lab.leave("train", files_below(dora_adapter, "adapter"))
        return lab

    return make


def test_a_dora_adapter_is_merged_and_what_the_engine_can_not_load_is_said(dora_lab):
    lab = dora_lab()
    assert not lab.run.store.exists(lab.run.step_key("export_candidate", "adapter.gguf"))
    evidence = execute(lab)
    assert evidence.verdict == "pass", broken(evidence)
    found = values(evidence)
    assert found["checkpoint_mean_kl"] < 1e-4
    assert found["engine_as_transformers"] == 1.0
    assert found["adapter_in_engine"] == "not applicable: llama.cpp loads no DoRA adapter"
    assert found["apart_tokens_per_s"] is None
    assert not {"engine_same_answers", "engine_logprob_change"} & found.keys()
    assert "llama.cpp loads no DoRA adapter" in evidence.summary
    assert "apart not measurable" in evidence.summary
    document = decision_of(lab)
    assert document["decision"] == "merge"
    assert {answer["apart"] for answer in document["answers"]} == {None}


def test_a_dora_merge_that_lost_the_magnitudes_is_seen(dora_lab, dora_adapter, tmp_path):
    """Merged as plain LoRA: the same factors, the magnitudes left out."""
    plain = shutil.copytree(dora_adapter, tmp_path / "plain")
    change_json(plain / "adapter_config.json", lambda c: c.update(use_dora=False))
    change_weights(
        plain / "adapter_model.safetensors",
        lambda weights: {name: w for name, w in weights.items() if "magnitude" not in name},
    )
    evidence = execute(dora_lab(plain))
    assert evidence.verdict == "fail"
    assert "checkpoint_mean_kl" in broken(evidence)


@pytest.fixture
def qlora_lab(exported_lab, tiny_models):
    """A run of QLoRA whose adapter checkpointing has measured on the 4-bit base."""

    def make(replaced=None):
        lab = exported_lab(replaced, training={"qlora": True})
        sizes = dict.fromkeys(("accumulation", "world_size", "threads"), 1)
        plan = Plan(
            **sizes, micro_batch=4, effective_batch=4, device="cpu", precision="bf16", estimate={}
        )
        lab.leave("gradient_accumulation", {"plan.json": plan.model_dump_json()})
        kept = sha256_file(tiny_models.adapter / "adapter_model.safetensors")
        entry = {"step": 1, "eval_loss": 1.0, "eval_loss_error": 0.1, "adapter_sha256": kept}
        document = json.dumps({"best_step": 1, "evaluations": [entry]})
        files = files_below(tiny_models.adapter, "adapter")
        lab.leave("train", {**files, "checkpoints.json": document})
        lab.execute("checkpointing")
        return lab

    return make


def test_a_faithful_merge_after_qlora_passes(qlora_lab):
    lab = qlora_lab()
    evidence = execute(lab)
    assert evidence.verdict == "pass", broken(evidence)
    found = values(evidence)
    assert found["rows_scored"] == 30
    assert found["adapter_on_4bit_perplexity"] > 1
    assert found["merge_loss"] < found["merge_loss_upper"] <= 0.05
    assert "on its 4-bit base, as trained" in evidence.summary

    # Losses of another adapter do not count; rows with other tokens stop the step.
    document = lab.document("checkpointing", "losses.json")
    lab.leave("checkpointing", {"losses.json": json.dumps({**document, "adapter_sha256": "0"})})
    evidence = execute(lab)
    assert evidence.verdict == "inconclusive"
    assert "are of another adapter" in evidence.summary
    document["targets"][3] += 1
    lab.leave("checkpointing", {"losses.json": json.dumps(document)})
    with pytest.raises(TunelineError, match="learned tokens with the merged model's tokenizer"):
        execute(lab)


def test_a_merge_at_a_wrong_scale_after_qlora_is_seen(qlora_lab, tiny_models, tmp_path):
    """Merged at twice its strength, as an export that applies alpha/r again does."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    strong = stronger(tiny_models.adapter, tmp_path / "strong", 2)
    base = AutoModelForCausalLM.from_pretrained(tiny_models.base, dtype=torch.float32)
    merged = shutil.copytree(tiny_models.merged, tmp_path / "merged")
    PeftModel.from_pretrained(base, strong).merge_and_unload().half().save_pretrained(merged)
    evidence = execute(qlora_lab({**files_below(merged, "merged"), **as_candidate(merged)}))
    assert evidence.verdict == "fail"
    assert "merge_loss_upper" in broken(evidence)
    assert values(evidence)["merge_loss"] > 0.05
    # The file is a faithful copy of the wrong weights.
    assert "engine_rounding_ratio" not in broken(evidence)


def test_without_losses_of_the_adapter_the_price_is_not_known(exported_lab):
    evidence = execute(exported_lab(training={"qlora": True}))
    assert evidence.verdict == "inconclusive"
    assert broken(evidence) == {"merge_loss_upper"}
    assert "checkpointing left no losses of the adapter; run it again" in evidence.summary


def losses(*sums, weights=None):
    return RowLosses(sums, (10,) * len(sums), weights or (1.0,) * len(sums))


MERGED = losses(10.0, 12.0, 9.0, 11.0)


def shifted(*changes):
    return [s + d for s, d in zip(MERGED.sums, changes, strict=True)]


@pytest.fixture(scope="module")
def scored(tiny_models):
    """The merged model's losses on 16 answers."""
    renderer = Renderer(load_tokenizer(tiny_models.merged), "tokenizer")
    rendered = renderer.render([conversation(number)[0] for number in range(1000, 1016)])
    rows = [ScoredRow.marked(one.ids, one.loss_mask) for one in rendered]
    exact, rounded = (
        checkpoint_losses(tiny_models.merged, rows, threads=1, dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    return ScoredRows(("a",) * len(rows), rows, exact, rounded)


def losses_of(models, rows, folder, computed, *, wrong):
    """The losses of the merged model in a GGUF type or a format of transformers."""
    model, (how, kind) = models.merged, computed.split()
    if wrong:
        spoiled(scale_norm)(models, model := folder / "other")
    if how == "gguf":
        return sequence_losses(export_gguf(model, folder / "a.gguf", kind).path, rows)
    return checkpoint_losses(model, rows, threads=1, dtype=kind)


@pytest.mark.parametrize(
    ("computed", "wrong", "number_format", "verdict"),
    [
        ("gguf f32", False, "float16", "pass"),
        ("gguf f16", False, "float16", "pass"),
        ("gguf bf16", False, "bfloat16", "pass"),
        ("torch float16", False, "float16", "pass"),
        ("torch bfloat16", False, "bfloat16", "pass"),
        # It rounds more than it says.
        ("torch bfloat16", False, "float16", "fail"),
        ("torch float32", True, "float16", "fail"),
        ("torch bfloat16", True, "bfloat16", "fail"),
    ],
)
def test_an_engine_may_differ_as_its_number_format_does(
    computed, wrong, number_format, verdict, scored, tiny_models, tmp_path
):
    found = losses_of(tiny_models, scored.rows, tmp_path, computed, wrong=wrong)
    parity = compare_engine("Some engine", scored, found, number_format)
    assert conclude(parity.measurements) == verdict


def test_what_is_not_measured_does_not_pass(scored):
    one = ScoredRows(("a",), scored.rows[:1], scored.exact[:1], scored.rounded[:1])
    broken = [[math.nan] * len(row) for row in scored.exact]
    cases = [(scored, None), (one, one.rounded), (scored, broken)]
    found = [compare_engine("Some engine", *case, "bfloat16") for case in cases]
    verdicts = [conclude(parity.measurements) for parity in found]
    assert verdicts == ["inconclusive", "inconclusive", "fail"]
    assert "Some engine does not report" in found[0].sentence


def against(merged, adapter, limit=0.1):
    return compare_adapter([[loss] for loss in merged.sums], adapter, limit)


@pytest.mark.parametrize(
    ("adapter", "verdict"),
    [
        (losses(*shifted(-0.2, -0.25, -0.15, -0.2)), "pass"),
        (losses(*shifted(-2.0, -2.2, -1.9, -2.1)), "fail"),
        (losses(*shifted(-4.0, 3.0, -3.0, 2.0)), "inconclusive"),
        (losses(*shifted(1.0, 1.1, 0.9, 1.0)), "pass"),
    ],
)
def test_the_upper_end_of_the_merge_loss_decides(adapter, verdict):
    found = against(MERGED, adapter)
    assert conclude(found.measurements) == verdict
    assert ("validation rows would decide" in found.sentence) is (verdict == "inconclusive")


def test_weights_count_in_the_merge_loss_and_one_row_decides_nothing():
    heavy = losses(9.0, 12.0, weights=(1000.0, 1.0))
    found = against(losses(10.0, 12.0), heavy, 0.2)
    by_name = {m.name: m.value for m in found.measurements}
    assert by_name["merge_loss"] == pytest.approx(math.exp(0.1) - 1, rel=0.01)
    one = against(losses(1.0), losses(1.0))
    assert conclude(one.measurements) == "inconclusive"
