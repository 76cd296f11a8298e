"""The micro-batch fits, the effective batch is exact, and accumulating changes nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.lab.forked import forked_probe
from tests.lab.runs import broken, value
from tests.lab.tiny_models import make_model
from tests.lab.training_runs import MAX_TOKENS, make_rows
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tuneline.artifacts.training import LoraSettings, Packing
from tuneline.config import TrainingConfig
from tuneline.data.tables.rows import write_dataset
from tuneline.errors import RetryableError, UserError
from tuneline.evidence import Verdict, conclude
from tuneline.models import load_tokenizer
from tuneline.training import gradient_accumulation
from tuneline.training.gradient_accumulation import (
    Plan,
    candidates,
    in_process,
    judge,
    largest_safe,
)
from tuneline.training.loop.model import attach_lora, load_base
from tuneline.training.loop.rows import encode_split
from tuneline.training.loop.trainer import LabelledTokenTrainer, TrainerSettings
from tuneline.training.resources.checks import AccumulationCheck, check_accumulation
from tuneline.training.resources.estimate import Speed, Work
from tuneline.training.resources.out_of_memory import GIB, Failure, MemoryNotes
from tuneline.training.resources.probe import (
    MeasuredBatch,
    PredictedPeak,
    ProbeReport,
    ProbeSpec,
    TriedBatch,
    measure_step,
)


def plan(**changes):
    given = {
        "micro_batch": 4,
        "accumulation": 2,
        "world_size": 1,
        "effective_batch": 8,
        "max_length": 128,
        "longest_row": 100,
        "threads": 1,
        "device": "cpu",
        "precision": "fp32",
        "memory_limit_bytes": 4 << 30,
        "predicted_peak_bytes": 2 << 30,
        "measured_peak_bytes": 2 << 30,
        "measured_step_bytes": 2 << 30,
        "tokens_per_second": 100.0,
        "estimate": {},
    }
    return Plan(**{**given, **changes})


SAME = AccumulationCheck(
    rows=4,
    loss=2.0,
    loss_difference=1e-7,
    gradient_difference=1e-6,
    naive_difference=0.05,
    loss_rounding=1e-7,
    gradient_rounding=1e-6,
)
BLIND = "difference_if_normalised_per_micro_batch"


def test_micro_batches_reach_the_effective_batch_or_are_refused():
    assert candidates(8, 1, None) == [8, 4, 2, 1]
    assert candidates(8, 2, 2) == [2]
    with pytest.raises(UserError, match="choose among 8, 4, 2, 1"):
        candidates(8, 1, 3)
    with pytest.raises(UserError, match="can't be shared by 3 processes"):
        candidates(8, 3, None)


def tried(micro_batch, predicted, measured=None, out_of_memory=None):
    """A micro-batch in the probe's report; bytes."""
    known = {"micro_batch": micro_batch, "predicted": PredictedPeak(parts={}, total=predicted)}
    if measured is None:
        return TriedBatch(**known, out_of_memory=out_of_memory)
    return MeasuredBatch(
        **known,
        tokens=100,
        longest_row=50,
        peaks=[],
        measured_step=measured,
        measured=measured,
        work=Work(9, 4000, 2000),
        batches={},
        speed=Speed((100, 110), (1.0, 1.1), 100, 1.0, 1.0),
        accumulation=SAME,
    )


def probe_of(answers, asked):
    """A probe whose report depends on the largest size that is left."""

    def probe(left):
        asked.append(left)
        known = {"device": "cpu", "precision": "fp32", "limit": 500, "limit_source": "a test"}
        return ProbeReport(**known, tried=answers[left[0]])

    return probe


def test_the_largest_micro_batch_that_was_measured_within_the_limit_is_taken():
    too_low, right = tried(4, 400, 600), tried(2, 200, 300)
    asked = []
    probe = probe_of({8: [tried(8, 900), too_low], 4: [too_low], 2: [right]}, asked)
    _, taken, found = largest_safe([8, 4, 2, 1], probe)
    assert asked == [[8, 4, 2, 1], [2, 1]]
    assert taken.micro_batch == 2
    assert [attempt.micro_batch for attempt in found] == [8, 4, 2]
    report, taken, _ = largest_safe([4], probe)
    assert taken.measured > report.limit


def test_a_micro_batch_that_runs_out_of_memory_makes_place_for_the_next():
    full = tried(8, 400, out_of_memory="can't allocate")
    _, taken, found = largest_safe([8, 4], probe_of({8: [full], 4: [tried(4, 200, 300)]}, []))
    assert (taken.micro_batch, found[0].out_of_memory) == (4, "can't allocate")
    least = probe_of({1: [tried(1, 400, out_of_memory="can't allocate")]}, [])
    with pytest.raises(UserError, match=r"micro-batch of 1 runs out of memory .*checkpointing"):
        largest_safe([1], least)


@pytest.mark.parametrize(
    ("changes", "found", "names", "verdict"),
    [
        ({}, {}, set(), Verdict.PASS),
        ({"accumulation": 3}, {}, {"effective_batch"}, Verdict.FAIL),
        ({"measured_peak_bytes": 5 << 30}, {}, {"measured_peak"}, Verdict.FAIL),
        ({"measured_step_bytes": 3 << 30}, {}, {"prediction_error"}, Verdict.WARN),
        ({"predicted_peak_bytes": 1 << 30}, {}, {"prediction_error"}, Verdict.WARN),
        ({"longest_row": 129}, {}, {"longest_row"}, Verdict.FAIL),
        ({}, {"gradient_difference": 2e-3}, {"gradient_difference"}, Verdict.FAIL),
        ({}, {"loss_difference": 2e-3}, {"loss_difference"}, Verdict.FAIL),
        # Where rounding is larger, so is the limit; that of the loss stays.
        ({}, {"gradient_difference": 2e-3, "gradient_rounding": 1e-3}, set(), Verdict.PASS),
        (
            {},
            {"gradient_difference": 4e-3, "gradient_rounding": 1e-3},
            {"gradient_difference"},
            Verdict.FAIL,
        ),
        (
            {},
            {"loss_difference": 2e-3, "gradient_rounding": 1e-3},
            {"loss_difference"},
            Verdict.FAIL,
        ),
        ({}, {"gradient_rounding": 1e-2}, {BLIND}, Verdict.WARN),
        ({"predicted_peak_bytes": int(1.8 * GIB)}, {}, set(), Verdict.PASS),
        # A check that could not see the fault it exists for.
        ({}, {"naive_difference": 1e-4}, {BLIND}, Verdict.WARN),
        ({}, {"rows": 1}, {"compared_rows"}, Verdict.FAIL),
    ],
)
def test_each_limit_turns_the_verdict(changes, found, names, verdict):
    measurements = judge(plan(**changes), replace(SAME, **found))
    assert broken(measurements) == names
    assert conclude(measurements) == verdict


GEMMA = {"vocab_size": 262_144, "head_dim": 16, "sliding_window": 8, "tie_word_embeddings": True}


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory):
    """A model of Gemma's shape with its whole vocabulary."""
    folder = tmp_path_factory.mktemp("wide")
    make_model(folder, "Gemma3", **GEMMA)
    return folder


@pytest.fixture(scope="module")
def compared(tiny_base, wide_base, tmp_path_factory):
    """Compare accumulation of a trainer's class with one large batch, on real rows."""
    folder = tmp_path_factory.mktemp("accumulation")
    write_dataset(folder / "dataset.parquet", *make_rows())
    tokenizer = load_tokenizer(tiny_base)
    rows = encode_split(folder / "dataset.parquet", "train", tokenizer, "tokenizer", MAX_TOKENS)
    lora = LoraSettings(
        r=4, alpha=8, dropout=0.2, target_modules=["q_proj"], rslora=False, dora=False
    )

    packing = Packing(packed=True, attention="sdpa", padded_attention="sdpa")

    def compare(kind, *, qlora=False, packed=False, wide=False):
        precision = "bf16" if qlora else "fp32"
        base = load_base(wide_base if wide else tiny_base, "cpu", qlora=qlora, precision=precision)
        trainer = kind(
            model=attach_lora(base, lora),
            tokenizer=tokenizer,
            settings=TrainerSettings(
                folder / "trainer", 2, 4, 1, precision, "cpu", packing if packed else Packing()
            ),
            config=TrainingConfig(cpu_kernels=not packed),
            rows=rows[:8],
            validation=[],
        )
        return check_accumulation(trainer, few_learned(rows) if wide else rows)

    return compare


def few_learned(rows):
    """Rows with one, two, three and three learned tokens: nine, as short labels have."""
    taken = [replace(row, ids=tuple(i % 480 for i in row.ids)) for row in rows[:4]]
    counts = zip(taken, (1, 2, 3, 3), strict=True)
    return [
        replace(row, learned=tuple(i >= len(row.ids) - count for i in range(len(row.ids))))
        for row, count in counts
    ]


@pytest.mark.parametrize("qlora", [False, True])
def test_accumulated_gradients_equal_one_large_batch(compared, qlora):
    found = compared(LabelledTokenTrainer, qlora=qlora)
    assert found.gradient_difference < 1e-5
    assert found.loss_difference < 1e-5
    assert found.naive_difference > 3 * found.gradient_tolerance
    assert conclude(judge(plan(), found)) == Verdict.PASS


def test_packed_gradients_equal_one_padded_batch_unless_rows_see_each_other(compared, monkeypatch):
    found = compared(LabelledTokenTrainer, packed=True)
    assert max(found.gradient_difference, found.loss_difference) < 1e-5
    whole = DataCollatorForLanguageModeling.torch_call

    def leaky(self, rows):
        batch = whole(self, rows)
        return {**batch, "position_ids": torch.arange(batch["input_ids"].shape[1])[None]}

    monkeypatch.setattr(DataCollatorForLanguageModeling, "torch_call", leaky)
    found = compared(LabelledTokenTrainer, packed=True)
    assert found.gradient_difference > 10 * found.gradient_tolerance
    assert conclude(judge(plan(), found)) == Verdict.FAIL


class PerMicroBatch(LabelledTokenTrainer):
    """Takes the mean of each micro-batch and the mean of those means."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, return_outputs, None)
        return loss / self.current_gradient_accumulation_steps


class Unweighted(LabelledTokenTrainer):
    """Drops the weights of rows."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = {**inputs, "weight": inputs["weight"] * 0 + 1}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class DroppedRow(LabelledTokenTrainer):
    """Loses the row with the fewest learned tokens, which comes first."""

    dropped = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not self.dropped:
            self.dropped = True
            inputs = {**inputs, "weight": inputs["weight"] * 0}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class ShiftedMask(LabelledTokenTrainer):
    """Learns from one token earlier on."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels, ids = inputs["labels"], inputs["input_ids"]
        earlier = torch.cat([labels[:, 1:], labels[:, :1]], 1) != -100
        inputs = {**inputs, "labels": ids.where(earlier | (labels != -100), labels)}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


@pytest.mark.long
def test_a_head_of_262144_tokens_sums_as_well_as_a_small_one(compared):
    found = compared(LabelledTokenTrainer, wide=True)
    # Plain PyTorch loses digits where its products have few rows.
    assert found.gradient_difference < found.gradient_rounding / 2
    assert conclude(judge(plan(), found)) == Verdict.PASS


@pytest.mark.parametrize(
    ("kind", "wide"),
    [
        (PerMicroBatch, False),
        (Unweighted, False),
        (DroppedRow, False),
        (ShiftedMask, False),
        *(
            pytest.param(kind, True, marks=pytest.mark.long)
            for kind in (PerMicroBatch, Unweighted, DroppedRow, ShiftedMask)
        ),
    ],
)
def test_another_normalisation_mask_or_set_of_rows_is_found(compared, kind, wide):
    found = compared(kind, wide=wide)
    assert found.gradient_difference > 10 * found.gradient_tolerance
    measurements = judge(plan(), found)
    assert conclude(measurements) == Verdict.FAIL
    assert "gradient_difference" in broken(measurements)


def planned(run):
    run.leave_lora()
    evidence = run.execute("gradient_accumulation", gradient_accumulation.run)
    return evidence, run.document("gradient_accumulation", "plan.json")


def test_a_run_measures_plans_and_estimates(lab):
    run = lab(evaluations=2)
    evidence, document = planned(run)
    assert evidence.verdict == Verdict.PASS, evidence.summary
    assert (document["micro_batch"], document["accumulation"]) == (8, 1)
    assert document["tried"][0]["measured"] == document["measured_peak_bytes"]
    assert value(evidence, "gradient_difference") < 1e-4
    assert 0.1 < value(evidence, "measured_peak") < 3
    expected = document["estimate"]
    # 36 rows twice in steps of 8; three passes over 12 validation rows.
    assert expected["work"]["steps"] == value(evidence, "estimated_steps") == 9
    assert expected["work"]["tokens"] > 5 * expected["work"]["validation_tokens"] / 3
    assert expected["seconds"] > expected["validation_seconds"] > 0
    assert expected["cost"] == pytest.approx(expected["device_hours"] * expected["price"])
    assert "training will take" in evidence.summary
    assert not list(run.run.store.keys(run.run.key("work")))


@pytest.fixture
def quick_probe(monkeypatch):
    """A probe that starts in no time."""
    monkeypatch.setattr(gradient_accumulation, "in_process", forked_probe)


def test_limits_below_what_a_run_takes_fail_with_advice(lab, quick_probe):
    evidence, document = planned(lab(memory_limit_gib=0.05, max_hours=1e-5, max_cost=1e-9))
    assert evidence.verdict == Verdict.FAIL
    assert broken(evidence) >= {"measured_peak", "estimated_hours", "estimated_cost"}
    assert "gradient_checkpointing" in evidence.summary
    assert "above training.max_hours 1e-05 and training.max_cost 1e-09 USD" in evidence.summary
    assert "lower training.epochs" in evidence.summary
    assert len(document["tried"]) == 4


def test_what_ran_out_of_memory_before_is_not_tried_again(lab, quick_probe):
    full = Failure("gradient_accumulation", 4, "OOMKilled", "pod-1")
    run, named = lab(), lab("named", micro_batch=4)
    for each in (run, named):
        MemoryNotes(each.run).add(full)
    _, document = planned(run)
    assert (document["micro_batch"], document["accumulation"]) == (2, 4)
    with pytest.raises(UserError, match=r"leave training\.micro_batch open, or set training"):
        planned(named)


@pytest.mark.long
def test_a_probe_without_enough_memory_says_so_and_the_next_size_is_tried(lab, monkeypatch):
    real = LabelledTokenTrainer.train

    def train(trainer, *args, **options):
        if trainer.settings.micro_batch == 8:
            torch.empty(1 << 50)
        return real(trainer, *args, **options)

    def here(spec, scratch):
        return measure_step(spec, scratch / "probed.json")

    monkeypatch.setattr(LabelledTokenTrainer, "train", train)
    monkeypatch.setattr(gradient_accumulation, "in_process", here)
    _, document = planned(lab())
    assert "DefaultCPUAllocator" in document["tried"][0]["out_of_memory"]
    assert (document["micro_batch"], document["accumulation"]) == (4, 2)


class Killed:
    returncode, stderr = -9, ""


@pytest.fixture
def spec(tiny_base, tmp_path):
    """The specification of a probe whose dataset is not there."""
    lora = LoraSettings(
        r=4, alpha=8, dropout=0.0, target_modules=["q_proj"], rslora=False, dora=False
    )
    uri, dataset = f"file://{tmp_path}/runs/r", tmp_path / "missing.parquet"
    known = {"run": uri, "base": tiny_base, "dataset": dataset, "scratch": tmp_path}
    return ProbeSpec(**known, lora=lora, threads=1, sizes=[4])


def test_a_probe_that_fails_says_why(spec, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"the memory probe failed: .*/runs/r"):
        in_process(spec, tmp_path)
    monkeypatch.setattr(gradient_accumulation.subprocess, "run", lambda *a, **k: Killed())
    with pytest.raises(RetryableError, match=r"micro-batches \[4\] was killed by signal 9"):
        in_process(spec, tmp_path)


def test_a_probe_that_is_killed_while_it_measures_has_run_out_of_memory(
    spec, tmp_path, monkeypatch
):
    report = probe_of({4: [tried(4, 400)]}, [])([4])

    def run(command, **options):
        report.write(Path(command[-1]))
        return Killed()

    monkeypatch.setattr(gradient_accumulation.subprocess, "run", run)
    last = in_process(spec, tmp_path).last
    assert (last.micro_batch, last.out_of_memory) == (4, "killed while its memory was measured")
