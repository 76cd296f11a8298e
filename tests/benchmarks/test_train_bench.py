"""The training benchmark trains the same rows on both sides, and its figures show what differs."""

from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import pytest
from benchmarks.contest.contest import Contest, Options
from benchmarks.contest.report import ratios_of
from benchmarks.contest.trial import Sample, conduct, write_lines
from benchmarks.training import trials as train_trials
from benchmarks.training.rows import (
    batches_of,
    computed_share,
    encode,
    sample_conversations,
    without_common_prefix,
    write_rows,
)
from tests.lab.tiny_models import make_model

from benchmarks import train
from tuneline.errors import UserError
from tuneline.models import load_tokenizer

STEPS, WARM_UP = 4, 1
SIZES = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
TINY = {**train.LLAMA_8B, **SIZES}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train-bench") / "base"
    make_model(folder, tie_word_embeddings=True, intermediate_size=128)
    return folder


@pytest.fixture(scope="module")
def rows(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("train-rows")
    return encode(sample_conversations(24, 7), 4, load_tokenizer(base), folder)


@pytest.fixture
def job(base, rows, tmp_path):
    return {
        "base": str(base),
        "scratch": str(tmp_path),
        "rows": write_rows(tmp_path / "train.jsonl", rows[0]),
        "validation": write_rows(tmp_path / "validation.jsonl", rows[1]),
        "threads": 1,
        "device": "cpu",
        "precision": "fp32",
        "checkpointing": False,
        "qlora": False,
        "batch": 4,
        "steps": STEPS,
        "warm_up": WARM_UP,
        "seed": 7,
        **train.LORA,
        "learning_rate": 0.01,
    }


def told(**settings):
    return {"sampling": train.SAME_ORDER, **settings}


def test_the_second_workload_has_the_same_rows_without_their_beginning(base, tmp_path):
    sample = sample_conversations(16, 7)
    changed = without_common_prefix(sample, 7)
    assert len({row[0]["content"] for row in sample}) == 1
    for before, after in zip(sample, changed, strict=True):
        assert sorted(before[0]["content"].split()) == sorted(after[0]["content"].split())
        assert before[1:] == after[1:]
    tokenizer = load_tokenizer(base)
    shares = [
        computed_share(batches_of(encode(c, 1, tokenizer, tmp_path / name)[0], 5, 3, 7))
        for name, c in (("shared", sample), ("own", changed))
    ]
    assert shares[0] < 0.75 < 0.9 < shares[1] <= 1


def test_both_sides_train_the_same_curve_and_count_the_same_tokens(job, rows):
    ours = conduct(train_trials.tuneline(job))
    theirs = conduct(train_trials.trl({**job, **told()}))
    assert set(ours.scores) == set(theirs.scores)
    # Adapters begin at other random values, with no effect before the first step.
    assert ours.scores["training_loss"] == pytest.approx(theirs.scores["training_loss"], abs=0.05)
    assert ours.scores["validation_loss"] == pytest.approx(
        theirs.scores["validation_loss"], abs=0.05
    )
    # The fault: TRL learns at another rate. Both losses must tell.
    slow = conduct(train_trials.trl({**job, **told(learning_rate=1e-6)}))
    for name in ("training_loss", "validation_loss"):
        assert slow.scores[name] > ours.scores[name] + 0.1, name


def test_tokens_of_both_sides_leave_padding_and_warm_up_out(job, rows, monkeypatch):
    timed = batches_of(rows[0], 4, STEPS, 7)[WARM_UP:]
    expected = sum(len(row.ids) for batch in timed for row in batch)
    padded = sum(max(len(row.ids) for row in batch) * len(batch) for batch in timed)
    assert expected < padded
    window = train_trials.StepWindow(WARM_UP)
    monkeypatch.setattr(train_trials, "StepWindow", lambda warm_up: window)
    for trial in (train_trials.tuneline, train_trials.trl):
        window.__init__(WARM_UP)
        scores = conduct(trial({**job, **told(), "validation": ""})).scores
        assert scores["tokens_per_s"] * window.seconds == pytest.approx(expected)


def test_the_judge_of_validation_loss_agrees_with_the_products_own(job, rows):
    from tuneline.training.loop.model import attach_lora, load_unquantised
    from tuneline.training.loop.token_loss import add_labelled_head, row_losses

    model = attach_lora(load_unquantised(Path(job["base"])), train_trials.lora_of(job))
    add_labelled_head(model.get_base_model())
    expected = row_losses(model, rows[1], batch=4, pad_id=0, device="cpu", precision="fp32")
    assert train_trials.validation_loss(model, job) == pytest.approx(expected.mean, rel=1e-4)


class FakeContest:
    """Gives samples by system and settings, in place of processes."""

    def __init__(self, scores):
        self.asked, self._scores, self.options = [], scores, options(Path())

    def run(self, system, job):
        settings = {**job, **system.options}
        self.asked.append((system.name, settings))
        return Sample("1", 1, 1.0, 1.0, 1.0, self._scores(system, settings))

    measure = Contest.measure


def options(folder, **settings):
    return Options(folder, lambda line: None, **settings)


@pytest.mark.parametrize(("gain", "order"), [(1.2, train.OWN_GROUPING), (1.01, train.SAME_ORDER)])
def test_trl_gets_its_fastest_settings(tmp_path, gain, order):
    def scores(system, settings):
        speed = 100.0
        speed *= 1.5 if settings["precision"] == "fp32" else 1.0
        speed *= 0.8 if settings["checkpointing"] else 1.0
        speed *= gain if settings["sampling"] == train.OWN_GROUPING else 1.0
        # The clock says otherwise: something else ran during the best try.
        return {"tokens_per_s": 1000 / speed, "tokens_per_cpu_s": speed}

    contest = FakeContest(scores)
    chosen, results = train.choose_trl(contest, {"steps": 12}, options(tmp_path))
    assert chosen == {"precision": "fp32", "checkpointing": False, "sampling": order}
    assert len(results) == len(contest.asked) == 5


def sample_of(training_loss, validation_loss):
    scores = {"training_loss": training_loss, "validation_loss": validation_loss}
    return Sample("1", 1, 1.0, 1.0, 1.0, scores)


def test_a_worse_curve_shows_against_the_noise_of_seeds():
    theirs = [sample_of(1.00, 2.0), sample_of(1.02, 2.1), sample_of(0.98, 1.9)]
    alike = [sample_of(1.01, 2.05), sample_of(0.99, 1.95), sample_of(1.0, 2.0)]
    worse = [sample_of(1.3, 2.8), sample_of(1.31, 2.9), sample_of(1.29, 2.7)]
    for ours, apart in ((alike, False), (worse, True)):
        found = {r.metric: r.value for r in train.loss_results(ours, theirs, "")}
        for name in ("training_loss", "validation_loss"):
            assert (found[f"{name}_difference"] > 3 * found[f"{name}_noise"]) is apart


def test_the_report_has_both_workloads_and_says_what_is_missing(base, tmp_path, monkeypatch):
    def scores(system, settings):
        ours = system.name == train.OURS
        own = train.OWN_PREFIXES in settings["rows"]
        return {
            "tokens_per_s": (200.0 if own else 300.0) if ours else 100.0,
            "tokens_per_cpu_s": 50.0,
            "peak_memory": 1000.0 if ours else 1500.0,
            "training_loss": 1.0,
            "validation_loss": 1.1,
        }

    contest = FakeContest(scores)
    monkeypatch.setattr(train, "Contest", lambda *a, **k: contest)
    monkeypatch.setattr("tuneline.models.resolve", lambda uri, log: SimpleNamespace(path=base))
    monkeypatch.setattr(train, "why_no_gpu", lambda gpu: "there is none")
    report = train.run(options(tmp_path, runs=2, rows=32))
    assert report.ratios == {
        "tokens_per_s_vs_trl": 3.0,
        "memory_vs_trl": 1.5,
        "tokens_per_cpu_s_vs_trl": 1.0,
        "tokens_per_s_vs_trl_no_shared_prefix": 2.0,
        "memory_vs_trl_no_shared_prefix": 1.5,
        "tokens_per_cpu_s_vs_trl_no_shared_prefix": 1.0,
    }
    [missing] = report.not_measured
    assert missing.reason == "there is none"
    assert set(missing.ratios) == set(train.GPU_RATIOS)
    seeds = [settings["seed"] for name, settings in contest.asked if name == train.OURS]
    assert seeds == [7, 8, 7, 8]
    assert report.workload["rows"] == report.workload["rows_no_shared_prefix"] == 32


def test_rows_of_ones_own_are_one_workload_and_must_suffice(tmp_path):
    sample = sample_conversations(60, 3)
    path = tmp_path / "rows.jsonl"
    write_lines(path, [{"messages": turns} for turns in sample])
    assert train._workloads(options(tmp_path, input=path)) == {"": sample}
    with pytest.raises(UserError, match=f"has {6 + train.VALIDATION_ROWS} conversations"):
        train._workloads(options(tmp_path, input=path, rows=6))
    with pytest.raises(UserError, match="--rows must be 24 or more"):
        train._workloads(options(tmp_path, rows=23))


class InProcess(Contest):
    """Conducts trials in this process."""

    def run(self, system, job):
        trial = getattr(train_trials, system.trial.split(":")[1])
        return conduct(trial({**job, **system.options}))


def test_the_gpu_part_runs_but_for_the_device(job, base, tmp_path):
    model = train.write_random_llama(tmp_path / "llama", TINY, base)
    contest = InProcess(options(tmp_path), one_core=False)
    results = train.gpu_results(contest, train.gpu_job(job, model, TINY["vocab_size"], 32), 1)
    ratios = ratios_of(results, train.GPU_RATIOS)
    assert set(ratios) == set(train.GPU_RATIOS)
    assert all(value > 0 for value in ratios.values())
    value = {(r.system, r.metric): r.value for r in results}
    # Random weights on random rows: what is learned is nothing, on either side.
    for method in train.METHODS:
        losses = [value[f"{who}, {method}", "gpu_training_loss"] for who in ("tuneline", "TRL")]
        assert losses[0] == pytest.approx(losses[1], abs=0.05)
        assert fmean(losses) == pytest.approx(6.24, abs=0.1)  # ln 512


def test_a_missing_gpu_is_named():
    assert "no NVIDIA GPU" in train.why_no_gpu(None)
    assert "sees no GPU" in train.why_no_gpu("NVIDIA H100")
