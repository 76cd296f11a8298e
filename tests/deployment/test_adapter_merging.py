import json
import shutil

import pytest
from tests.deployment.conftest import files_below
from tests.lab.runs import Lab, broken, values
from tests.lab.tiny_task import make_tokenizer, task_rows, train

from tuneline.artifacts.deployment import DECISION
from tuneline.deployment import adapter_merging
from tuneline.deployment.adapter_merging import logprob_change, same_share
from tuneline.deployment.merging.served_forms import LevelSpeed, Slowdown, decide, slowdown
from tuneline.gguf.export import export_gguf, export_lora_gguf
from tuneline.serving.client import ChatResult, TokenLogprob
from tuneline.serving.protocol import Usage
from tuneline.training import export_candidate

# A rank at which the adapter, not the tiny base, takes the time of a token.
HEAVY_RANK = 4096


def execute(lab):
    return lab.execute("adapter_merging", adapter_merging.run)


def decision_of(lab):
    return lab.document("adapter_merging", "decision.json")


def test_a_faithful_merge_passes(exported_lab):
    lab = exported_lab()
    evidence = execute(lab)
    assert evidence.verdict == "pass", broken(evidence)
    assert values(evidence)["checkpoint_mean_kl"] < 1e-4
    assert values(evidence)["engine_same_answers"] == 1.0
    assert values(evidence)["engine_as_transformers"] == 1.0
    assert values(evidence)["rows_compared"] == 90
    assert values(evidence)["rows_scored"] == 16
    assert values(evidence)["engine_perplexity_change"] < 2e-4
    assert "merge_loss_upper" not in values(evidence)
    assert "in llama.cpp" in evidence.summary
    document = decision_of(lab)
    assert document["decision"] == "merge"
    assert "nothing is left to apply" in document["reason"]


def test_a_wrong_lora_scale_in_the_engine_is_seen(exported_lab, tiny_models, tmp_path):
    """The adapter at three times its strength, as a converter that forgets alpha/r gives it."""
    strong = shutil.copytree(tiny_models.adapter, tmp_path / "strong")
    settings = json.loads((strong / "adapter_config.json").read_text())
    settings["lora_alpha"] *= 3
    (strong / "adapter_config.json").write_text(json.dumps(settings))
    wrong = export_lora_gguf(strong, tiny_models.base, tmp_path / "strong.gguf").path
    evidence = execute(exported_lab({"adapter.gguf": wrong}))
    assert evidence.verdict == "fail"
    assert "engine_logprob_change" in broken(evidence)


def test_a_merge_that_lost_the_adapter_is_seen(exported_lab, tiny_models, tmp_path):
    """The merged files are really those of the base."""
    replaced = {f"merged/{p.name}": p for p in tiny_models.base.iterdir() if p.is_file()}
    lost = export_gguf(tiny_models.base, tmp_path / "lost.gguf").path
    evidence = execute(exported_lab({**replaced, "candidate.gguf": lost}))
    assert evidence.verdict == "fail"
    assert {"checkpoint_mean_kl", "engine_same_answers"} <= broken(evidence)


def test_another_tokenizer_in_the_engine_is_seen(exported_lab, tiny_models, tmp_path):
    """The pre-tokenizer of the GGUF file keeps digits together; the rows hold numbers."""
    other = shutil.copytree(tiny_models.merged, tmp_path / "other")
    document = json.loads((other / "tokenizer.json").read_text())
    document["pre_tokenizer"] = document["pre_tokenizer"]["pretokenizers"][1]
    document["model"]["merges"].append(["1", "2"])
    unused = next(t for t, i in document["model"]["vocab"].items() if i == 799)
    del document["model"]["vocab"][unused]
    document["model"]["merges"] = [
        m for m in document["model"]["merges"] if "".join(m) != unused and unused not in m
    ]
    document["model"]["vocab"]["12"] = 799
    (other / "tokenizer.json").write_text(json.dumps(document))
    wrong = export_gguf(other, tmp_path / "other.gguf").path
    lab = exported_lab({"candidate.gguf": wrong})
    rows = task_rows({"train": 60, "validation": 30, "holdout": 16})
    for row in rows[:5]:
        row["messages"][1]["content"] += " order 1212"
    lab.leave_dataset(rows)
    evidence = execute(lab)
    assert evidence.verdict == "fail"
    assert values(evidence)["rows_tokenised_otherwise"] == 5


def test_another_chat_template_in_the_engine_is_seen(exported_lab, tiny_models, tmp_path):
    other = shutil.copytree(tiny_models.merged, tmp_path / "other")
    template = (other / "chat_template.jinja").read_text()
    (other / "chat_template.jinja").write_text(template.replace("assistant", "helper"))
    wrong = export_gguf(other, tmp_path / "other.gguf").path
    evidence = execute(exported_lab({"candidate.gguf": wrong}))
    assert evidence.verdict == "fail"
    assert values(evidence)["prompts_rendered_otherwise"] == 8


def test_many_tenants_keep_adapters_apart_by_policy_and_numbers(exported_lab):
    lab = exported_lab(deployment={"multi_tenant": True, "max_adapter_slowdown": 0.95})
    evidence = execute(lab)
    assert evidence.verdict == "pass", broken(evidence)
    found = values(evidence)
    assert (found["decision"], found["decided_as_asked"]) == ("apart", True)
    assert DECISION.read(lab.context("production_quantization")).decision == "apart"
    for form in ("merged", "apart"):
        for level in (1, 4):
            assert found[f"{form}_tokens_per_s_at_{level}"] > 0
            assert found[f"{form}_ttft_p50_at_{level}"] > 0
            assert found[f"{form}_tpot_p50_at_{level}"] > 0
        assert found[f"{form}_memory"] > 1e6
        assert found[f"{form}_failed_requests"] == 0
    lost = 1 - found["apart_tokens_per_s"] / found["merged_tokens_per_s"]
    assert found["adapter_slowdown"] == pytest.approx(lost, abs=1e-3)
    room = (8 << 30) - found["apart_memory"]
    assert found["adapters_that_fit"] == room // found["adapter_bytes"]


@pytest.fixture(scope="module")
def heavy_adapter(tiny_models, tmp_path_factory):
    """The adapter with rows and columns of zeros: the same answers at much more work."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_models.adapter, tmp_path_factory.mktemp("heavy") / "adapter")
    settings = json.loads((folder / "adapter_config.json").read_text())
    times = HEAVY_RANK // settings["r"]
    settings.update(r=HEAVY_RANK, lora_alpha=settings["lora_alpha"] * times)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    weights = load_file(folder / "adapter_model.safetensors")
    for name, weight in weights.items():
        axis = 0 if "lora_A" in name else 1
        zeros = torch.zeros_like(weight).repeat_interleave(times - 1, dim=axis)
        weights[name] = torch.cat([weight, zeros], dim=axis).contiguous()
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_that_costs_too_much_is_merged_although_many_share_the_base(
    exported_lab, heavy_adapter, tiny_models, tmp_path
):
    gguf = export_lora_gguf(heavy_adapter, tiny_models.base, tmp_path / "heavy.gguf").path
    lab = exported_lab(
        {"adapter.gguf": gguf}, deployment={"multi_tenant": True, "max_adapter_slowdown": 0.3}
    )
    lab.leave("train", files_below(heavy_adapter, "adapter"))
    evidence = execute(lab)
    assert evidence.verdict == "warn"
    assert values(evidence)["decision"] == "merge"
    assert broken(evidence) == {"adapter_slowdown", "decided_as_asked"}
    assert "max_adapter_slowdown (30%) allows" in evidence.summary
    assert decision_of(lab)["decision"] == "merge"


def test_a_base_with_another_chat_template_can_not_be_shared(exported_lab, tiny_models, tmp_path):
    """Served as it is, it would put other prompts before the adapter than training did."""
    other = shutil.copytree(tiny_models.base, tmp_path / "base")
    template = (other / "chat_template.jinja").read_text()
    (other / "chat_template.jinja").write_text(template.replace("assistant", "helper"))
    sharing = {"multi_tenant": True, "max_adapter_slowdown": 0.95}
    evidence = execute(exported_lab(base_model=str(other), deployment=sharing))
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
    """A run that has trained a DoRA adapter and really exported it."""

    def make(**deployment) -> Lab:
        lab = exported_lab(training={"dora": True}, deployment=deployment)
        lab.leave("train", files_below(dora_adapter, "adapter"))
        lab.execute("export_candidate", export_candidate.run)
        return lab

    return make


def test_a_dora_adapter_is_merged_and_what_the_engine_can_not_load_is_said(dora_lab):
    lab = dora_lab()
    assert not lab.run.store.exists(lab.run.step_key("export_candidate", "adapter.gguf"))
    evidence = execute(lab)
    assert evidence.verdict == "pass", broken(evidence)
    assert values(evidence)["checkpoint_mean_kl"] < 1e-4
    assert values(evidence)["engine_as_transformers"] == 1.0
    assert (
        values(evidence)["adapter_in_engine"] == "not applicable: llama.cpp loads no DoRA adapter"
    )
    assert values(evidence)["apart_tokens_per_s"] is None
    assert not {"engine_same_answers", "engine_logprob_change"} & values(evidence).keys()
    assert "llama.cpp loads no DoRA adapter" in evidence.summary
    document = decision_of(lab)
    assert document["decision"] == "merge"
    assert {answer["apart"] for answer in document["answers"]} == {None}


def test_a_dora_merge_that_lost_the_magnitudes_is_seen(dora_lab, dora_adapter, tmp_path):
    """Merged as plain LoRA: the same factors, the magnitudes left out."""
    from safetensors.torch import load_file, save_file

    plain = shutil.copytree(dora_adapter, tmp_path / "plain")
    settings = json.loads((plain / "adapter_config.json").read_text())
    (plain / "adapter_config.json").write_text(json.dumps({**settings, "use_dora": False}))
    weights = load_file(plain / "adapter_model.safetensors")
    kept = {name: w for name, w in weights.items() if "magnitude" not in name}
    assert len(kept) < len(weights)
    save_file(kept, plain / "adapter_model.safetensors")
    lab = dora_lab()
    lab.leave("train", files_below(plain, "adapter"))
    lab.execute("export_candidate", export_candidate.run)
    lab.leave("train", files_below(dora_adapter, "adapter"))
    evidence = execute(lab)
    assert evidence.verdict == "fail"
    assert "checkpoint_mean_kl" in broken(evidence)


def test_dora_adapters_for_many_tenants_are_merged(dora_lab):
    evidence = execute(dora_lab(multi_tenant=True))
    assert evidence.verdict == "warn"
    assert values(evidence)["decision"] == "merge"
    assert broken(evidence) == {"decided_as_asked"}
    assert "llama.cpp loads no DoRA adapter" in evidence.summary
    assert "apart not measurable" in evidence.summary


def test_policy_and_numbers_decide():
    some, much = Slowdown(0.3, 0.02), Slowdown(0.7, 0.02)
    assert decide(False, None, some, 0.5)[0] == "merge"
    assert decide(True, None, some, 0.5)[0] == "apart"
    assert decide(True, "it can't", some, 0.5) == (
        "merge",
        "several adapters were to share one base, but it can't",
    )
    for lost in (much, None):
        assert decide(True, None, lost, 0.5)[0] == "merge"


def test_the_slowdown_is_that_of_all_slots_with_its_noise():
    merged, apart = LevelSpeed(4, 0.1, 0.01, 100.0, 3.0, 0), LevelSpeed(4, 0.1, 0.01, 60.0, 2.0, 0)
    lost = slowdown(merged, apart)
    assert lost.value == pytest.approx(0.4)
    assert lost.error == pytest.approx((0.02**2 + (0.6 * 0.03) ** 2) ** 0.5, abs=1e-4)
    assert slowdown(LevelSpeed(4, 0.0, 0.0, 0.0, 0.0, 8), apart) is None


def answer(*tokens):
    logprobs = tuple(TokenLogprob(token, value) for token, value in tokens)
    text = "".join(token for token, _ in tokens)
    return ChatResult(text, "stop", Usage(), None, 1.0, logprobs=logprobs)


def test_log_probabilities_are_compared_up_to_where_answers_part():
    one, other = answer(("a", -1.0), ("b", -2.0)), answer(("a", -1.25), ("c", -9.0))
    assert logprob_change([one], [other]) == pytest.approx(0.25)
    assert logprob_change([answer(("a", -1.0))], [answer(("b", -1.0))]) == float("inf")
    assert same_share(["a", "b"], ["a", "c"]) == 0.5
