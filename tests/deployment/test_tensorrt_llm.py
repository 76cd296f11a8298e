"""deployment.engine: tensorrt_llm through every step, on the stand-in for NVIDIA's image."""

import json
from pathlib import Path

import pytest
from tests.deployment.conftest import files_below
from tests.governance.conftest import CLEAN_CODE, HOLDS, SHIPPED
from tests.lab.releases import log_release, opened
from tests.lab.runs import Lab, broken, values
from tests.lab.s3_server import s3
from tests.lab.tiny_task import task_rows
from tests.lab.trtllm import H100, L4

from tuneline.artifacts.deployment import CHOICE, ENGINE_IDENTITY, NOT_BUILT
from tuneline.artifacts.governance import MANIFEST_REF
from tuneline.asking.models import candidate
from tuneline.catalogue import ITEMS
from tuneline.errors import UserError
from tuneline.governance.release.verify import verify
from tuneline.serving.engines import get_engine
from tuneline.serving.following.release import serve_request
from tuneline.store import S3Store

ROWS = task_rows({"train": 240, "validation": 30, "holdout": 48})
# Every step that starts the engine, in the order of a run.
STEPS = """adapter_merging production_quantization build_engine holdout_performance base_regression
extraction_audit determinism latency_benchmark engine_optimization health_checks cold_start
cost_tracking fallback""".split()

# So few questions decide nothing, and so few wrong answers set no threshold.
OTHER_VERDICTS = {"base_regression": ("inconclusive", "warn"), "fallback": ("warn", "inconclusive")}


@pytest.fixture
def trtllm_lab(trtllm_image, tiny_models, tmp_path, monkeypatch):
    """Make a run for TensorRT-LLM that export_candidate has finished."""
    monkeypatch.setenv("TUNELINE_THREADS", "1")

    def make(store=None, **deployment):
        sizes = {"parallel": 2, "context_tokens": 512, "quality_rows": 8, "max_metric_drop": 0.5}
        lab = Lab(
            tmp_path,
            {
                "base_model": str(tiny_models.base),
                "deployment": {"engine": "tensorrt_llm", **sizes, **deployment},
                "evaluation": {
                    "regression_questions": 20,
                    "max_new_tokens": 32,
                    # The tiny model forgets prose: `check_measurements` sees it.
                    "max_perplexity_ratio": 1e6,
                },
            },
            store=store,
        )
        lab.leave_dataset(ROWS)
        lab.leave_scrubbed()
        lab.leave("train", files_below(tiny_models.adapter, "adapter"))
        lab.leave("export_candidate", files_below(tiny_models.merged, "merged"))
        return lab

    return make


@pytest.mark.long
def test_the_tiny_model_through_every_step(trtllm_lab, trtllm_image, tmp_path, monkeypatch):
    monkeypatch.setattr(S3Store, "MULTIPART_BYTES", 5 << 20)
    monkeypatch.setenv("TRTLLM_LAB_PADDING", str(6 << 20))
    monkeypatch.setattr("tuneline.environment.own_code", lambda: CLEAN_CODE)
    with s3(monkeypatch, "tuneline"):
        lab = trtllm_lab("s3://tuneline/team", target_hardware="nvidia-l4")
        leave_the_rest(lab)
        found = {}
        for step in STEPS:
            entry = lab.execute(step)
            # Twenty general questions decide nothing, and a tiny base knows none of them.
            verdicts = OTHER_VERDICTS.get(step, ("pass",))
            verdict = getattr(entry, "verdict", "pass")
            assert verdict in verdicts, (step, broken(entry), entry.summary)
            found[step] = values(entry)
        identity = ENGINE_IDENTITY.find(lab.run)
        shipped = candidate(lab.context("promote")).model.sha256
        measured = [step for step in STEPS if "candidate_sha256" in found[step]]
        assert len(measured) == 10
        assert {found[step]["candidate_sha256"] for step in measured} == {shipped}
        check_measurements(found)
        check_identity(identity)
        check_release(lab, trtllm_image, tmp_path)


def leave_the_rest(lab):
    """Leave the items that start no engine, before what reads them."""
    lab.run.meta.update(code=CLEAN_CODE, started_by="alice")
    done = {*STEPS, "lineage", "export_candidate", "train"}
    for step in dict.fromkeys([*(item.id for item in ITEMS), *SHIPPED]):
        if step not in done and lab.run.find_entry(step) is None:
            # Steps with an engine read the plan of the training where there is one.
            files = {} if step in ("lora_selection", "gradient_accumulation") else SHIPPED.get(step)
            lab.leave(step, files or {}, [HOLDS])


def check_measurements(found):
    merging, chosen = found["adapter_merging"], found["production_quantization"]
    assert merging["adapter_in_engine"].endswith("TensorRT-LLM is started with merged models only")
    assert merging["engine_as_transformers"] >= 0.75
    assert (merging["rows_tokenised_otherwise"], merging["prompts_rendered_otherwise"]) == (0, 0)
    assert chosen["chosen"] == "fp8"
    assert 0 < chosen["fp8_mean_kl"] < 0.05
    assert chosen["fp8_bytes"] < chosen["f16_bytes"]
    # The evidence says what the measurement was taken on.
    assert chosen["measured_on_engine"] == "tensorrt_llm 1.2.1"
    assert chosen["measured_on"].endswith(L4[0])
    assert found["latency_benchmark"]["measured_on"] == "nvidia-l4"
    assert found["holdout_performance"]["gain"] > 0
    # On an engine of the same variant, built to be measured.
    assert found["base_regression"]["perplexity_ratio_lower"] > 1.5
    assert found["engine_optimization"]["shipping_engine_built"] is True


def check_identity(identity):
    stated = identity.model_dump()
    names = ("engine", "version", "variant", "method", "calibrated_on", "context_logits", "driver")
    assert [stated[name] for name in names] == [
        *("tensorrt_llm", "tensorrt_llm 1.2.1", "fp8", "fp8", 240, False, "570.133.20")
    ]
    assert stated["quantization"]["quant_algo"] == "FP8"
    assert stated["limits"]["max_total_tokens"] == 512
    assert {"engine/rank0.engine", "tokenizer/tokenizer.json", "engine_identity.json"} <= set(
        stated["files"]
    )


def check_release(lab, image, tmp_path):
    """The manifest states the engine, a flipped byte shows, and only its own GPU serves it."""
    evidence = lab.execute("lineage")
    assert evidence.verdict == "pass", (broken(evidence), evidence.summary)
    reference = MANIFEST_REF.find(lab.run)
    uri = reference.uri
    manifest = json.loads(lab.run.store.get_bytes(lab.run.store.key_of(uri)))
    assert manifest["engine"]["gpus"][0]["name"] == L4[0]
    stated = {entry["name"] for entry in manifest["files"]}
    assert {"engine/engine/rank0.engine", "engine/engine_identity.json"} <= stated
    assert "engine/tokenizer/chat_template.jinja" in stated
    assert verify(uri) == []
    name, version = manifest["name"], manifest["version"]
    log_release(lab.run.store, name, version, reference.sha256)
    release = opened(lab.run.store, name)
    assert release.engine == "tensorrt_llm"
    request, loaded = serve_request([release], tmp_path / "pod", "127.0.0.1", 8081)
    assert [*loaded.weights.values()] == [values(evidence)["candidate_sha256"]]
    assert (request.parallel, request.context_tokens) == (2, 512)
    engine = get_engine("tensorrt_llm")
    assert engine.command(request)[-2:] == ["--tp_size", "1"]
    image.gpu(*H100)
    with pytest.raises(UserError, match=r"built for SM 8\.9 .* this pod has 9\.0"):
        engine.command(request)
    flip(lab.run.store, f"models/{name}/{version}/engine/engine/rank0.engine")
    [difference] = verify(uri)
    assert "engine/rank0.engine" in difference


def flip(store: S3Store, key: str) -> None:
    """Flip a byte of an object, whose stored hash stays."""
    where = {"Bucket": store.bucket, "Key": f"{store.prefix}/{key}"}
    stored = store._s3.get_object(**where)
    raw = bytearray(stored["Body"].read())
    raw[-5] ^= 1
    store._s3.put_object(**where, Body=bytes(raw), Metadata=stored["Metadata"])


def leave_choice(lab, variant="f16"):
    choice = {"variant": variant, "engine": "tensorrt_llm", "sha256": "0" * 64}
    lab.leave("production_quantization", {"choice.json": json.dumps(choice)}, [HOLDS])


def test_what_is_built_is_what_is_served_later(trtllm_lab, trtllm_image):
    lab = trtllm_lab()
    leave_choice(lab)
    assert values(lab.execute("build_engine"))["built"] is True
    engine = lab.document("build_engine", "engine.json")
    assert [Path(command[0]).name for command in engine["commands"]] == ["python", "trtllm-build"]
    assert json.loads(engine["answered"])["intent"]
    ctx = lab.context("determinism")
    assert CHOICE.read(ctx).variant == "f16"
    assert dict(candidate(ctx).model.files) == ENGINE_IDENTITY.read(ctx).files
    # The step's folder holds nothing that is not served.
    names = {ref.name for ref in ctx.entry("build_engine").artifacts}
    assert all(name.startswith("engine/") or name.endswith(".json") for name in names)
    trtllm_image.gpu(*H100)
    with pytest.raises(UserError, match=r"built for SM 8\.9 .*build it again here"):
        lab.execute("determinism")


@pytest.mark.long
def test_a_norm_that_the_converter_reads_wrongly_is_seen(trtllm_lab, monkeypatch):
    """It is 2 % off: every answer stays the same."""
    monkeypatch.setenv("TRTLLM_LAB_NORM", "1.02")
    evidence = trtllm_lab().execute("adapter_merging")
    assert (evidence.verdict, broken(evidence)) == ("fail", {"engine_rounding_ratio"})


def test_a_machine_without_a_gpu_builds_nothing_and_measures_nothing(trtllm_lab, monkeypatch):
    monkeypatch.setenv("TRTLLM_LAB_GPUS", "0")
    lab = trtllm_lab()
    for step in ("adapter_merging", "production_quantization"):
        with pytest.raises(UserError, match=r"can't be started here: it needs a GPU pod .*no GPU"):
            lab.execute(step)
    leave_choice(lab)
    record = lab.execute("build_engine")
    assert values(record)["built"] is False
    assert {ref.name for ref in record.artifacts} == {"not_built.json"}
    report = NOT_BUILT.find(lab.run)
    assert "it needs a GPU pod" in report.reason
    assert [command[0] for command in report.commands] == ["python", "trtllm-build"]
    evidence = lab.execute("engine_optimization")
    assert evidence.verdict == "fail"
    assert {"shipping_engine_built", "engines_measured"} <= broken(evidence)
    assert "needs a GPU pod" in evidence.summary
    with pytest.raises(UserError, match="the engine tensorrt_llm was not built"):
        lab.execute("determinism")
