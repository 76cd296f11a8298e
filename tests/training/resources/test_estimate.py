"""Work is counted, speed is timed, and limits refuse before or stop during a training."""

import re

import pytest
import yaml
from tests.lab.runs import broken, value

from tuneline.cli import main
from tuneline.config import build_config
from tuneline.errors import EXIT_USER
from tuneline.evidence import Verdict, conclude
from tuneline.machine.checkout import project_root
from tuneline.training import loss_monitoring
from tuneline.training.resources.estimate import (
    Speed,
    Work,
    advice,
    compare,
    estimate,
    judge,
    spread_evenly,
)
from tuneline.training.resources.forecast import forecast, gpu_gib
from tuneline.training.resources.spending import Spent, StopOnLimit, reached

WORK = Work(steps=100, tokens=360_000, validation_tokens=20_000)
SPEED = Speed(
    tokens=(90, 110, 100, 100),
    seconds=(0.9, 1.1, 1.0, 1.0),
    validation_tokens=1000,
    validation_seconds=2.0,
    startup_seconds=20.0,
)


def config(pods=None, governance=None, **training):
    sections = {"training": training, "pods": pods or {}, "governance": governance or {}}
    return build_config({"data": {"source": "rows.jsonl"}}, sections)


def test_time_is_startup_training_and_validation_and_the_price_that_of_devices():
    found = estimate(WORK, SPEED, config())
    assert found.seconds == pytest.approx(20 + 3600 + 40)
    assert found.validation_seconds == pytest.approx(40)
    assert found.device_hours == pytest.approx(found.hours)
    # Micro-batches that took just what their tokens say leave the machine's own drift.
    assert found.uncertainty == pytest.approx(0.1)
    uneven = Speed((100, 100, 100), (0.5, 1.0, 1.5), 1000, 2.0, 0.0)
    assert estimate(WORK, uneven, config()).uncertainty > 0.5
    assert estimate(WORK, Speed((100,), (1.0,), 1000, 2.0, 0.0), config()).uncertainty > 1
    # Devices multiply hours and divide time.
    found = estimate(WORK, SPEED, config(pods={"gpus": 2, "nodes": 2}, effective_batch=8))
    assert found.devices == 4
    assert found.seconds == pytest.approx(20 + 900 + 10)
    assert found.device_hours == pytest.approx(4 * found.hours)
    # The price is that of the devices, or of the serving machines.
    serving = {"machine_cost_per_hour": 0.5, "currency": "EUR"}
    found = estimate(WORK, SPEED, config(governance=serving))
    assert (found.price, found.currency) == (0.5, "EUR")
    own = estimate(WORK, SPEED, config(governance=serving, device_cost_per_hour=4.0))
    assert own.cost == pytest.approx(8 * found.cost)
    # Samples represent all sizes.
    sizes = [5, 1, 9, 3, 7, 2, 8, 4, 6, 10]
    assert [sizes[i] for i in spread_evenly(sizes, 5)] == [2, 4, 6, 8, 10]
    assert sorted(spread_evenly([3, 4], 5)) == [0, 1]


@pytest.mark.parametrize(
    ("limits", "names", "verdict"),
    [
        ({}, set(), None),
        ({"max_hours": 2.0, "max_cost": 1.0}, set(), Verdict.PASS),
        ({"max_hours": 0.5}, {"estimated_hours"}, Verdict.FAIL),
        ({"max_cost": 0.05}, {"estimated_cost"}, Verdict.FAIL),
    ],
)
def test_an_estimate_above_a_limit_fails(limits, names, verdict):
    settings = config(**limits)
    found = estimate(WORK, SPEED, settings)
    measurements = judge(found, settings)
    assert broken(measurements) == names
    if verdict:
        assert conclude(measurements) == verdict
    assert bool(advice(found, settings)) == bool(names)
    hours = next(m for m in measurements if m.name == "estimated_hours")
    assert hours.noise == pytest.approx(found.hours * found.uncertainty / 2, abs=1e-4)


def test_what_was_estimated_is_held_against_what_was_taken():
    price = {"devices": 2, "price": 3.0, "currency": "USD"}
    planned = {"work": {"tokens": 1000}, "seconds": 100.0, "uncertainty": 0.1, **price}
    whole = compare(planned, 110.0, 1000)
    assert whole["actual_over_estimated"] == 1.1
    assert whole["cost"] == pytest.approx(2 * 110 / 3600 * 3, abs=1e-4)
    # Stopped half-way: half of the time was expected.
    assert compare(planned, 60.0, 500)["actual_over_estimated"] == 1.2


def test_a_limit_is_reached_by_hours_or_by_money():
    assert reached(config(), 1e9, 5) is None
    assert reached(config(max_hours=1.0), 3599, 5) is None
    late = reached(config(max_hours=1.0), 3600, 5)
    assert (late.rule, late.step, late.value) == ("max_hours", 5, 1.0)
    dear = reached(config(max_cost=1.0, device_cost_per_hour=2.0, pods={"gpus": 4}), 450, 7)
    assert dear.rule == "max_cost"
    assert "training has cost 1.00 USD" in dear.sentence


def test_time_of_earlier_tries_counts(lab):
    run = lab().run
    now = [100.0]
    first = Spent(run, lambda: now[0])
    now[0] += 50
    first.note()
    now[0] += 5
    first.note()  # not due yet
    now[0] = 3.0  # another machine, another clock
    second = Spent(run, lambda: now[0])
    now[0] += 10
    assert second.seconds == pytest.approx(60)
    second.clear()
    assert Spent(run, lambda: now[0]).seconds == 0


def test_training_stops_at_its_limit_and_keeps_the_best(lab, monkeypatch):
    run = lab(epochs=4, max_hours=1.0, evaluations=1)
    real = StopOnLimit.on_step_end

    def late(self, args, state, control, **kwargs):
        if state.global_step == 5:
            self._spent._before += 3600
        real(self, args, state, control, **kwargs)

    monkeypatch.setattr(StopOnLimit, "on_step_end", late)
    record = run.train()
    document = run.document("train", "run.json")
    assert (document["steps"], document["steps_planned"]) == (5, 18)
    assert document["stopped"]["rule"] == "max_hours"
    assert "training.max_hours allows 1 h" in record.summary
    checkpoints = run.document("train", "checkpoints.json")
    # It was evaluated where it stopped, and that is the best so far.
    assert [e["step"] for e in checkpoints["evaluations"]] == [0, 5]
    assert checkpoints["best_step"] == 5
    assert document["resources"]["estimate"]["actual_seconds"] > 3600
    assert value(record, "actual_over_estimated_time") > 1
    evidence = run.execute("loss_monitoring", loss_monitoring.run)
    assert value(evidence, "stopped_early") is True
    assert "training.max_hours allows 1 h" in evidence.summary


def test_a_run_is_forecast_from_sizes(capsys, tmp_path):
    settings = tmp_path / "settings.yaml"
    page = project_root().joinpath("docs", "evaluation.md").read_text(encoding="utf-8")
    shards = yaml.safe_load(re.search(r"### Several pods.*?```yaml\n(.*?)```", page, re.S)[1])
    production = {"min_metric": 0.8, "load": {"users": 200}}
    settings.write_text(yaml.safe_dump({"evaluation": {**shards["evaluation"], **production}}))
    words = ["estimate", "--preset", "gpu", "--data", "sample://support.jsonl"]
    assert main([*words, "--config", str(settings), "--tokens", "1000000000"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"train +4 +8Gi +8 +1 ", said)
    assert re.search(r"light +8 +4Gi +1 +0 ", said)
    # 6 × 135M parameters × 750M tokens at 35 % of 989 TFLOP/s.
    assert "4 pods (4 GPUs) answer the hold-out, in 1/4 of the time." in said
    assert "Training takes about 29 minutes (a third to 3 times), 0.0486 USD" in said
    seventy = forecast(config(pods={"gpus": 8}), 70_000_000_000, tokens=10**9)
    # bf16 in eight shards (140 GB), or the whole base in NF4 on each GPU.
    assert gpu_gib(seventy.config, seventy.parameters) == pytest.approx(16.3, abs=0.1)
    quantised = config(pods={"gpus": 8}, qlora=True)
    assert gpu_gib(quantised, seventy.parameters) == pytest.approx(33.6, abs=0.1)
    assert forecast(config(), 135_000_000, tokens=10**6).seconds is None
    assert "Spark" not in seventy.sentence()
    on_spark = build_config({"data": {"source": "rows.jsonl", "engine": "spark"}}, {})
    assert "runs on the Spark that SPARK_REMOTE" in forecast(on_spark, 0, tokens=1).sentence()


def test_a_4bit_base_in_shards_is_refused_before_anything_runs(capsys, tmp_path):
    """FSDP2 corrupts 4-bit weights without an error."""
    settings, base = tmp_path / "settings.yaml", ["--data", "sample://support.jsonl"]
    for qlora, code in ((True, EXIT_USER), (False, 0)):
        training = {"training": {"qlora": qlora, "sharding": "fsdp"}}
        settings.write_text(yaml.safe_dump({"pods": {"gpus": 2}, **training}))
        assert main(["estimate", *base, "--config", str(settings)]) == code
        said = capsys.readouterr()
        assert ("each process holds the whole 4-bit base" in said.err) is qlora


def test_an_estimate_asks_for_no_limit_that_a_run_in_production_needs(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hi", "completion": "Hello"}\n')
    words = ["estimate", "--preset", "gpu", "--data", str(tmp_path / "rows.jsonl")]
    assert main([*words, "--base-model", "hf://org/name@main"]) == 0
    assert "train" in capsys.readouterr().out
