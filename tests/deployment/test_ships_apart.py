"""A run whose adapter ships beside the base: every step answers with it, and it is released."""

import json
import shutil

import pytest
from tests.deployment.conftest import exported, files_below, right_share
from tests.governance.conftest import CLEAN_CODE, HOLDS, SHIPPED
from tests.lab.releases import flip, opened
from tests.lab.runs import Lab, broken, value, write_dataset
from tests.lab.tiny_models import make_model
from tests.lab.tiny_task import conversation, task_rows

from tuneline.artifacts.deployment import CHOICE, ENGINE_IDENTITY
from tuneline.artifacts.training import LoraSettings
from tuneline.asking.models import candidate, server_of, ships_apart
from tuneline.catalogue import ITEMS, is_helper
from tuneline.errors import TunelineError, UserError
from tuneline.evidence import measure
from tuneline.gguf.export import export_lora_gguf
from tuneline.governance import fallback, lineage
from tuneline.governance.release.verify import verify
from tuneline.models.base_model import digest_of
from tuneline.run import Run
from tuneline.serving.engines.llama_cpp.engine import LlamaServer
from tuneline.serving.following.release import serve_request
from tuneline.store import CorruptObject, sha256_file

# Both speeds of the tiny models are those of HTTP; the limit is another test's matter.
APART = {"multi_tenant": True, "max_adapter_slowdown": 0.95}
FEW = {"regression_questions": 20, "determinism_prompts": 2}
SPLITS = {"train": 240, "validation": 30, "holdout": 48}
# The steps from the decision to the release, in their order.
STEPS = """adapter_merging production_quantization build_engine holdout_performance base_regression
extraction_audit determinism latency_benchmark engine_optimization health_checks cold_start
cost_tracking fallback lineage""".split()


@pytest.fixture
def apart_lab(tiny_models, tmp_path, tmp_path_factory, monkeypatch):
    """Make a run that has done everything before adapter_merging."""
    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path_factory.getbasetemp() / "tiny-cache"))
    monkeypatch.setenv("TUNELINE_THREADS", "1")

    def make(run_id="test", files=None, **deployment):
        settings = {
            "name": "model",
            "base_model": str(tiny_models.base),
            "deployment": {**APART, **deployment},
            # No tiny model knows prose.
            "evaluation": {"max_perplexity_ratio": 1e307, "max_new_tokens": 24, **FEW},
        }
        lab = Lab(tmp_path / run_id, settings, run_id, store=(tmp_path / "store").as_uri())
        lab.root = tmp_path
        lab.run.meta.update(code=CLEAN_CODE, started_by="alice")
        for item in ITEMS:
            if item.id not in STEPS:
                lab.leave(item.id, SHIPPED.get(item.id, {}), [HOLDS])
        rows = write_dataset(tmp_path / "dataset.parquet", task_rows(SPLITS))
        lab.leave("distribution_balancing", {"dataset.parquet": rows}, [HOLDS])
        lab.leave_scrubbed()
        kind = {"target_modules": [], "rslora": False, "dora": False}
        lora = LoraSettings(r=16, alpha=32, dropout=0.0, **kind)
        lab.leave("lora_selection", {"lora.json": lora.model_dump_json()}, [HOLDS])
        for step in ("final_audit", "gradient_accumulation"):
            lab.leave(step, SHIPPED[step], [HOLDS])
        lab.leave("train", files_below(tiny_models.adapter, "adapter"))
        lab.leave("export_candidate", exported(tiny_models, files))
        return lab

    return make


@pytest.fixture
def chosen_lab(apart_lab):
    """Make a run that has chosen a variant of the base to serve the adapter on."""

    def make(run_id="test", **deployment):
        lab = apart_lab(run_id, **deployment)
        lab.leave("adapter_merging", {"decision.json": '{"decision": "apart"}'}, [HOLDS])
        lab.execute("production_quantization")
        return lab

    return make


def answers_of(server, numbers):
    with server.client() as client:
        return [client.chat(conversation(n)[0][:-1], max_tokens=32).text for n in numbers]


@pytest.mark.long
def test_a_whole_chain_ships_and_serves_the_adapter(apart_lab, tiny_models, tmp_path):
    # With so few rows only a generous limit takes the quantised base.
    lab = apart_lab(max_metric_drop=0.3)
    found = {step: lab.execute(step) for step in STEPS}
    verdicts = {step: found[step].verdict for step in STEPS if not is_helper(step)}
    faults = {step: broken(found[step]) for step, v in verdicts.items() if v == "fail"}
    assert not faults
    assert value(found["adapter_merging"], "decision") == "apart"
    choice = CHOICE.read(lab.context("prepare_review"))
    adapter = sha256_file(tiny_models.adapter_gguf)
    assert choice.variant == "q8_0"
    assert choice.apart.adapter.sha256 == adapter
    assert choice.sha256 == digest_of({"base": choice.apart.base.sha256, "adapter": adapter})
    measured_on = {step: value(found[step], "candidate_sha256") for step in STEPS[3:]}
    assert set(measured_on.values()) == {choice.sha256}
    assert value(found["holdout_performance"], "tuned_metric") > 0.6
    assert value(found["lineage"], "ships_as_decided") is True
    probes = lab.document("health_checks", "probes.json")
    assert probes["engine"]["livenessProbe"]["exec"]["command"][-2:] == ["--adapter", "0"]
    lab.execute("promote")

    manifest = json.loads((tmp_path / "store/models/model/test/manifest.json").read_text())
    stated = {entry["name"]: entry["sha256"] for entry in manifest["files"]}
    assert stated["adapter.gguf"] == adapter
    assert "model.gguf" not in stated
    base = manifest["engine"]["apart"]["base"]
    assert (base["uri"], base["variant"]) == (str(tiny_models.base), "q8_0")
    assert base["digest"] == manifest["base_model"]["digest"]
    assert base["made_by"].startswith("gguf ")
    assert (tmp_path / "store" / base["key"] / "model.gguf").is_file()
    assert verify(lab.run.store.uri_of("models/model/test/manifest.json")) == []

    released = [opened(lab.run.store, "model")]
    request, loaded = serve_request(released, tmp_path / "released", "127.0.0.1", 0)
    assert loaded.weights == {"model@test": choice.sha256}
    numbers = range(1000, 1012)
    with LlamaServer(request) as server, server.client() as client:
        fields = server.with_adapter("model@test")
        tuned = [
            client.chat(conversation(n)[0][:-1], max_tokens=32, extra=fields).text for n in numbers
        ]
        plain = answers_of(server, numbers)
    assert right_share(tuned, numbers) > 0.6 > right_share(plain, numbers)

    # The next run falls back to this release, and is compared with it.
    later = apart_lab("later")
    second = fallback.second_model(later.context("fallback"))
    assert second.described == "the previous release test"
    assert second.model.sha256 == choice.sha256
    with server_of(second.model, later.run.config.deployment) as server:
        assert answers_of(server, numbers) == tuned


def test_clients_of_a_server_are_answered_with_the_adapter(chosen_lab):
    lab = chosen_lab()
    ctx = lab.context("holdout_performance")
    assert ships_apart(ctx)
    model = candidate(ctx).model
    assert {ref.name for ref in ctx.inputs.values()} >= {"base/model.gguf"}
    numbers = range(1000, 1012)
    with server_of(model, lab.run.config.deployment) as server:
        assert server.upstream("primary")["adapter"] == 0
        assert right_share(answers_of(server, numbers), numbers) > 0.6


def test_a_merged_run_after_an_apart_decision_does_not_ship_as_decided(chosen_lab, tiny_models):
    lab = chosen_lab()
    lab.leave_shipped(tiny_models.candidate_gguf)
    for step in STEPS:
        if step not in ("adapter_merging", "production_quantization", "lineage"):
            sha256 = sha256_file(tiny_models.candidate_gguf)
            files = SHIPPED.get(step, {})
            lab.leave(step, files, [HOLDS, measure("candidate_sha256", sha256, "sha256")])
    evidence = lab.execute("lineage", lineage.run)
    assert "ships_as_decided" in broken(evidence)


def test_a_quantised_base_is_compared_with_the_adapter_on_it(chosen_lab, tiny_models):
    """The merged model has the same perplexity; the base alone, untuned, has a higher one."""
    lab = chosen_lab(variants=["f16", "q4_0"])
    table = {v["name"]: v for v in lab.document("production_quantization", "variants.json")}
    assert table["f16"]["metric"] > 0.6
    assert table["q4_0"]["mean_kl"] > 1e-6
    assert table["q4_0"]["bytes"] < table["f16"]["bytes"]
    lab.leave("adapter_merging", {"decision.json": '{"decision": "merge"}'}, [HOLDS])
    lab.execute("production_quantization")
    merged = lab.document("production_quantization", "variants.json")[0]
    assert merged["perplexity"] == pytest.approx(table["f16"]["perplexity"], rel=1e-3)
    lab.leave("export_candidate", exported(tiny_models, {"candidate.gguf": tiny_models.base_gguf}))
    lab.execute("production_quantization")
    untuned = lab.document("production_quantization", "variants.json")[0]
    assert untuned["perplexity"] > 1.02 * merged["perplexity"]


def flip_adapter(lab, *_):
    flip(lab.artifact("export_candidate", "adapter.gguf"))


def exchange_adapter(lab, models, other):
    lab.leave("export_candidate", exported(models, {"adapter.gguf": other}))


def exchange_base(lab, models, _):
    (key,) = (k for k in lab.run.store.keys("bases/served") if k.endswith("model.gguf"))
    shutil.copyfile(models.candidate_gguf, lab.root / "store" / key)


@pytest.mark.parametrize(
    ("plant", "error", "said"),
    [
        (exchange_adapter, TunelineError, r"choice\.json was made with"),
        (flip_adapter, CorruptObject, r"adapter\.gguf"),
        (exchange_base, CorruptObject, r"model\.gguf"),
    ],
)
def test_bytes_that_were_not_chosen_are_refused(
    plant, error, said, chosen_lab, tiny_models, other_adapter, monkeypatch
):
    lab = chosen_lab()
    monkeypatch.setenv("TUNELINE_CACHE", str(lab.root / "fresh-cache"))
    plant(lab, tiny_models, other_adapter)
    with pytest.raises(error, match=said):
        candidate(lab.context("determinism"))


def test_an_adapter_of_another_base_does_not_load(apart_lab, tmp_path):
    """Trained on a base of another width; the engine says so before anything is measured."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "wide"
    make_model(folder, hidden_size=96)
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tuned = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
    tuned.save_pretrained(tmp_path / "wide-adapter")
    wide = export_lora_gguf(tmp_path / "wide-adapter", folder, tmp_path / "wide.gguf").path
    lab = apart_lab(files={"adapter.gguf": wide})
    with pytest.raises((TunelineError, UserError), match=r"llama\.cpp can't serve"):
        lab.execute("adapter_merging")


def test_runs_share_the_base_in_the_store_and_the_identity_names_both(chosen_lab):
    one, two = chosen_lab("one"), chosen_lab("two")
    choice, other = (CHOICE.read(lab.context("prepare_review")) for lab in (one, two))
    assert choice.apart.base == other.apart.base
    stored = [k for k in one.run.store.keys("bases/served") if k.endswith("model.gguf")]
    assert len(stored) == 1
    one.execute("build_engine")
    identity = ENGINE_IDENTITY.find(Run.open(one.run.uri))
    assert identity.apart == choice.apart
    assert identity.files == choice.apart.base.files
    assert identity.model_extra["sha256"] == choice.sha256
