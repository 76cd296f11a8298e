from dataclasses import replace

import pytest
from tests.lab.runs import broken, values
from tests.lab.tiny_task import task_rows

from tuneline import step
from tuneline.artifacts.deployment import CHOICE, MODEL
from tuneline.asking.models import candidate
from tuneline.config import DeploymentConfig
from tuneline.deployment import production_quantization
from tuneline.deployment.production_quantization import Variant, choose
from tuneline.gguf.export import quantize
from tuneline.store import sha256_file

F16 = Variant("f16", 200, "a", 900, 50.0, 10.0, 0.0, 0.0, 1.0, 0.9, 0.0, 0.03)
Q8 = Variant("q8_0", 110, "b", 800, 60.0, 10.1, 0.004, 0.001, 0.97, 0.9, 0.0, 0.03, 90)
Q4 = Variant("q4_0", 60, "c", 700, 70.0, 12.0, 0.2, 0.02, 0.8, 0.5, 0.4, 0.49, 90)
LIMITS = DeploymentConfig()


def execute(lab):
    return lab.execute("production_quantization")


@pytest.mark.parametrize(
    ("variants", "chosen"),
    [
        ([F16, Q8, Q4], "q8_0"),
        ([F16, replace(Q8, mean_kl=0.06), Q4], "f16"),
        ([F16, replace(Q8, metric_drop_upper=0.1), Q4], "f16"),
        ([Q4], None),
    ],
)
def test_the_smallest_variant_within_the_limits_is_chosen(variants, chosen):
    found = choose(variants, LIMITS)
    assert (found and found.name) == chosen


def test_a_good_quantisation_is_chosen_and_its_bytes_ship(exported_lab, tiny_models, tmp_path):
    lab = exported_lab(deployment={"max_metric_drop": 0.15})
    evidence = execute(lab)
    assert evidence.verdict == "pass"
    reader = lab.context("prepare_review")
    choice = CHOICE.read(reader)
    expected = sha256_file(quantize(tiny_models.candidate_gguf, tmp_path / "q8.gguf").path)
    assert choice.variant == "q8_0"
    assert choice.sha256 == sha256_file(MODEL.fetch(reader)) == expected
    assert values(evidence)["chosen_sha256"] == expected
    written = lab.document("production_quantization", "choice.json")
    assert written.keys() == set(
        "schema variant engine reason sha256 bytes judged_on apart".split()
    )
    f16, q8 = table = lab.document("production_quantization", "variants.json")
    assert (f16["name"], q8["name"]) == ("f16", "q8_0")
    assert q8["bytes"] < f16["bytes"]
    assert f16["mean_kl"] == pytest.approx(0, abs=1e-9)
    assert 1e-9 < q8["mean_kl"] < 0.05
    assert all(v["memory_bytes"] > 1e6 and v["tokens_per_s"] > 1 for v in table)
    assert f16["metric"] > 0.6
    assert evidence.summary.startswith("q8_0 ships")
    # The choice never touches the hold-out.
    rows = task_rows({"train": 60, "validation": 30, "holdout": 16})
    validation = {row["row_id"] for row in rows if row["split"] == "validation"}
    assert len(choice.judged_on) == 30
    assert set(choice.judged_on) <= validation
    assert not list(lab.run.store.keys("ledger"))


@pytest.mark.parametrize(
    ("deployment", "verdict", "said"),
    [
        # On 24 rows a variant without any loss may still lose 14 points.
        (
            {"quality_rows": 24},
            "pass",
            "q8_0 is smaller, but its metric drop of 0.000 may be up to 0.138",
        ),
        (
            {"variants": ["f16", "q4_0"], "max_kl": 1e-5},
            "pass",
            "q4_0 is smaller but loses too much",
        ),
        ({"variants": ["q4_0"], "max_kl": 1e-5}, "fail", "add f16"),
        # One variant is not a choice.
        ({"variants": ["f16"]}, "warn", "f16 ships"),
    ],
)
def test_what_loses_too_much_does_not_ship(deployment, verdict, said, exported_lab):
    evidence = execute(exported_lab(deployment=deployment))
    assert evidence.verdict == verdict
    assert said in evidence.summary
    assert verdict == "fail" or values(evidence)["chosen"] == "f16"


def test_a_choice_beyond_the_limits_fails(exported_lab, monkeypatch):
    monkeypatch.setattr(production_quantization, "choose", lambda variants, _: variants[-1])
    evidence = execute(exported_lab(deployment={"quality_rows": 24}))
    assert (evidence.verdict, broken(evidence)) == ("fail", {"chosen_metric_drop_upper"})


def break_measuring(monkeypatch):
    def dead(*_):
        raise RuntimeError("the server of q8_0 died")

    monkeypatch.setattr(production_quantization, "measure_variants", dead)


def test_the_unquantised_model_ships_if_measuring_breaks(exported_lab, monkeypatch, tiny_models):
    lab = exported_lab()
    break_measuring(monkeypatch)
    evidence = step.execute("production_quantization", lab.run.uri)
    assert evidence.verdict == "fail"
    assert "the server of q8_0 died" in evidence.summary
    assert evidence.summary.endswith("; instead the unquantised model (f16) goes on")
    shipped = candidate(lab.context("determinism"))
    assert shipped.variant == "f16"
    assert shipped.model.sha256 == sha256_file(tiny_models.candidate_gguf)
    assert not shipped.judged_on


def test_what_may_not_ship_unquantised_does_not(exported_lab, monkeypatch):
    lab = exported_lab(deployment={"variants": ["q8_0"]})
    break_measuring(monkeypatch)
    with pytest.raises(RuntimeError, match="died"):
        step.execute("production_quantization", lab.run.uri)
    assert lab.run.find_evidence("production_quantization").verdict == "fail"
    assert not CHOICE.exists(lab.context("build_engine"))
