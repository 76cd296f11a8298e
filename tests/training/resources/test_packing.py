"""Packed rows train as padded ones do, and only where their losses show that none sees another.

FlashAttention needs a GPU; here SDPA keeps rows apart, by the mask that transformers makes of the
positions.
"""

import random

import pytest
import torch
import yaml
from tests.lab.runs import broken, value
from tests.lab.tiny_models import make_model
from tests.lab.training_runs import TrainingLab
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tuneline.artifacts.training import LoraSettings, Packing
from tuneline.config import TrainingConfig
from tuneline.evidence import Verdict
from tuneline.models import load_tokenizer
from tuneline.training import gradient_accumulation
from tuneline.training.loop import trainer as loop_trainer
from tuneline.training.loop.model import attach_lora, attention_of, linear_modules
from tuneline.training.loop.rows import EncodedRow
from tuneline.training.loop.trainer import LabelledTokenTrainer, TrainerSettings
from tuneline.training.resources import checks
from tuneline.training.resources.probe import measure_step

# Float32 sums in another order: losses in nats.
TOLERANCE = 1e-4
PLAN = {"packing": Packing(packed=True, attention="sdpa", padded_attention="sdpa")}
PACKED = {
    "Llama": {},
    "Qwen2": {},
    # Local attention in one of two layers, over fewer tokens than a row has.
    "Gemma2": {"sliding_window": 8, "head_dim": 16},
    "Mistral": {"sliding_window": 8},
}


JAMBA = {
    "num_experts": 2,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "use_mamba_kernels": False,
}


@pytest.fixture(scope="module")
def rows():
    """Rows that are very different in length, every other one with double weight."""
    draw = random.Random(3)
    return [
        EncodedRow(
            f"row-{number}",
            tuple(draw.randrange(3, 480) for _ in range(length)),
            tuple(i >= length // 2 for i in range(length)),
            1.0 + number % 2,
        )
        for number, length in enumerate([50, 12, 33, 20, 7, 41, 9, 5])
    ]


@pytest.fixture
def by_mask(monkeypatch):
    """Pack with the model's own attention."""
    monkeypatch.setattr(checks, "packing_attention", lambda model, *_: attention_of(model))


def adapted(folder, kind, **options):
    model = make_model(folder, kind, **options)
    model.config.use_cache = False
    lora = LoraSettings(
        r=4, alpha=8, dropout=0.0, target_modules=linear_modules(model), rslora=False, dora=False
    )
    torch.manual_seed(5)
    model = attach_lora(model, lora)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    return model


def choose(model, rows, setting="on", **options):
    known = {"device": "cpu", "precision": "fp32", "pad_id": 0, **options}
    return checks.choose_packing(model, rows, setting=setting, **known)


def step(model, folder, rows, packing):
    """Loss and gradients of one optimiser step of the trainer, in four micro-batches."""
    trainer = LabelledTokenTrainer(
        model=model,
        tokenizer=load_tokenizer(folder),
        settings=TrainerSettings(folder / "t", 2, 4, 1, "fp32", "cpu", packing=packing),
        config=TrainingConfig(cpu_kernels=False),
        rows=rows,
        validation=[],
    )
    batches = list(trainer.get_train_dataloader())
    assert [len(batch["input_ids"]) for batch in batches] == [1 if packing.packed else 2] * 4
    items = trainer._get_num_items_in_batch(batches, torch.device("cpu"))
    model.zero_grad()
    loss = sum(float(trainer.training_step(model, batch, items)) for batch in batches)
    return loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", PACKED)
def test_losses_and_gradients_are_those_of_padded_rows(tmp_path, rows, by_mask, kind):
    model = adapted(tmp_path, kind, **PACKED[kind])
    packing = choose(model, rows)
    assert packing.packed, packing.reason
    assert packing.loss_difference < TOLERANCE
    assert packing.neighbour_difference < TOLERANCE
    theirs, their_gradients = step(model, tmp_path, rows, Packing())
    ours, our_gradients = step(model, tmp_path, rows, packing)
    assert ours == pytest.approx(theirs, rel=TOLERANCE)
    assert our_gradients.keys() == their_gradients.keys() != set()
    for name, gradient in their_gradients.items():
        assert (our_gradients[name] - gradient).norm() < TOLERANCE * gradient.norm(), name


@pytest.fixture
def leaky(monkeypatch):
    """Make packed batches whose positions go on from row to row, so that no mask is made."""
    whole = DataCollatorForLanguageModeling.torch_call

    def torch_call(self, examples):
        batch = whole(self, examples)
        if self.padding_free:
            batch["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None]
        return batch

    monkeypatch.setattr(DataCollatorForLanguageModeling, "torch_call", torch_call)


def ignores_masks(model, request):
    """An attention that ignores masks."""

    def ignores(module, query, key, value, attention_mask, **options):
        return sdpa_attention_forward(module, query, key, value, None, **options)

    AttentionInterface.register("ignores_masks", ignores)
    model.get_base_model().set_attn_implementation("ignores_masks")


def refuses(model, request):
    """A model that does not take packed rows."""
    whole = model.get_base_model().forward

    def forward(*args, **kwargs):
        if "seq_idx" in kwargs:
            raise TypeError("forward() got an unexpected keyword argument 'seq_idx'")
        return whole(*args, **kwargs)

    model.get_base_model().forward = forward


NEIGHBOUR = "a row's loss changes with its neighbour"


@pytest.mark.parametrize(
    ("kind", "options", "fault", "precisions", "reasons"),
    [
        # Positions by distance from the start of the sequence (ALiBi), and a state that is carried.
        ("Bloom", {}, None, ("fp32", "bf16"), ("keep rows apart", "refused packed rows")),
        ("Jamba", JAMBA, None, ("fp32", "bf16"), ("keep rows apart", "refused packed rows")),
        ("Llama", {}, lambda _, r: r.getfixturevalue("leaky"), ("fp32", "bf16"), (NEIGHBOUR,)),
        ("Llama", {}, ignores_masks, ("fp32",), (f"ignores_masks: {NEIGHBOUR}",)),
        ("Llama", {}, refuses, ("fp32",), ("refused packed rows (TypeError: forward() got an",)),
    ],
)
def test_where_rows_see_each_other_they_are_padded(
    tmp_path, rows, by_mask, request, kind, options, fault, precisions, reasons
):
    model = adapted(tmp_path, kind, **options)
    if fault:
        fault(model, request)
    before = attention_of(model)
    for precision in precisions:
        packing = choose(model, rows, precision=precision)
        assert packing.refused
        assert not packing.packed
        assert any(reason in packing.reason for reason in reasons), packing.reason
        assert attention_of(model) == before


def test_losses_that_are_off_in_another_way_are_caught():
    def fault(loss=0.0, neighbour=0.0, visible=1.0):
        return checks.FlatteningCheck(loss, neighbour, visible, TOLERANCE).fault

    assert fault() is None
    assert "differ by 0.01 nats" in fault(loss=0.01)
    assert "changes with its neighbour" in fault(neighbour=float("nan"))
    # A check that could not see the fault it exists for.
    assert "nothing shows whether rows see each other" in fault(visible=1e-5)


def test_rows_are_packed_by_flash_attention_alone(tmp_path, rows, monkeypatch):
    model = adapted(tmp_path, "Llama")
    assert choose(model, rows, "off").reason == "training.packing is off"
    for setting in ("auto", "on"):
        packing = choose(model, rows, setting)
        assert "packing needs FlashAttention" in packing.reason
        assert packing.refused == (setting == "on")
    assert checks.packing_attention(model, "cuda", "bf16") is None
    monkeypatch.setattr("transformers.utils.import_utils.is_flash_attn_2_available", lambda: True)
    assert checks.packing_attention(model, "cuda", "bf16") == checks.FLASH
    assert checks.packing_attention(model, "cuda", "fp32") is None
    assert checks.packing_attention(model, "cpu", "bf16") is None


@pytest.mark.parametrize("setting", ["on", "off", "auto"])
def test_the_setting_may_be_written_in_yaml_without_quotes(setting):
    document = yaml.safe_load(f"packing: {setting}")
    assert TrainingConfig.model_validate(document).packing == setting


def test_the_evidence_says_how_and_why():
    shape = {"padding_share": 0.0, "padding_share_if_padded": 0.2}
    packed = Packing(packed=True, attention="sdpa", loss_difference=1e-7, neighbour_difference=0.0)
    found = {m.name: m for m in checks.packing_measurements(packed, shape, "auto")}
    assert found["packing"].value == "packed"
    assert found["packed_loss_difference"].value == 1e-7
    assert checks.packing_sentence(packed) == ", rows packed (sdpa)"
    padded = Packing(refused=True, reason="sdpa: its rows see each other")
    [asked] = [m for m in checks.packing_measurements(padded, shape, "on") if m.name == "packing"]
    assert (asked.ok, asked.on_breach) == (False, "warn")
    assert asked.value == "end to end by training.cpu_kernels"
    free, *_ = checks.packing_measurements(padded, {**shape, "padding_share": 0.2}, "auto")
    assert free.ok is not False
    assert free.value == "padded"
    assert checks.packing_sentence(padded) == ", rows padded: sdpa: its rows see each other"
    assert checks.packing_sentence(Packing(reason="training.packing is off")) == ""


NAMES = ("loss", "task_loss", "grad_norm", "eval_loss", "tokens")


@pytest.fixture(scope="module")
def padded(tmp_path_factory, tiny_base):
    """Train the padded run that the others are compared with."""
    settings = {"training": {"packing": "off", "cpu_kernels": False}}
    run = TrainingLab(tmp_path_factory.mktemp("padded"), tiny_base, settings)
    run.train()
    return run


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_training_is_padded_training(lab, padded, by_mask, monkeypatch, checkpointing):
    attention = []
    monkeypatch.setattr(checks, "packing_attention", lambda *_: "eager")
    passes, losses = [], loop_trainer.row_losses

    def measured(model, *args, **options):
        passes.append(attention_of(model))
        return losses(model, *args, **options)

    class Noted(LabelledTokenTrainer):
        def compute_loss(self, model, inputs, *args, **options):
            attention.append((attention_of(self.model), len(inputs["input_ids"])))
            return super().compute_loss(model, inputs, *args, **options)

    monkeypatch.setattr(loop_trainer, "row_losses", measured)
    monkeypatch.setattr(loop_trainer, "LabelledTokenTrainer", Noted)
    run = lab(packing="on", cpu_kernels=False, gradient_checkpointing=checkpointing)
    evidence = run.train(**PLAN)
    run.assert_trained_like(padded, NAMES)
    # Validation has the attention that the steps have that measure it again.
    assert set(attention) == {("eager", 1)}
    assert set(passes) == {"sdpa"}
    assert run.trained["batches"]["padding_share"] == 0
    assert padded.trained["batches"]["padding_share"] > 0
    assert value(evidence, "packing") == "packed"
    assert value(evidence, "tokens_per_step") == pytest.approx(run.trained["tokens"] / 9, abs=0.1)
    assert "rows packed (eager)" in evidence.summary


def test_a_killed_training_resumes_padded_in_smaller_micro_batches(
    lab, padded, by_mask, monkeypatch
):
    run = lab(packing="on", cpu_kernels=False)
    run.prepare(**PLAN)
    run.killed_at_checkpoint(3)
    # The machine of the next try has less memory, and no FlashAttention.
    monkeypatch.setattr(checks, "packing_attention", lambda *_: None)
    run.leave_plan(2, **PLAN)
    evidence = run.resume()
    assert run.trained["resumed_from"] == 3
    assert not run.trained["packing"]["packed"]
    assert "packing" in broken(evidence)
    run.assert_trained_like(padded, NAMES)


def test_a_model_that_fails_the_check_is_trained_padded_and_the_record_says_why(
    lab, padded, by_mask, leaky
):
    run = lab(packing="on", cpu_kernels=False)
    evidence = run.train(**PLAN)
    run.assert_trained_like(padded, NAMES)
    assert not run.trained["packing"]["packed"]
    assert "rows padded: sdpa: a row's loss changes with its neighbour" in evidence.summary
    assert "packing" in broken(evidence)
    assert value(evidence, "padding_share") > 0


def test_the_plan_of_a_packed_run_is_measured_packed(lab, by_mask, monkeypatch):
    run = lab(packing="on", cpu_kernels=False, effective_batch=12, evaluations=2)

    def here(spec, scratch):
        return measure_step(spec, scratch / "probed.json")

    monkeypatch.setattr(gradient_accumulation, "in_process", here)
    run.leave_lora()
    evidence = run.execute("gradient_accumulation", gradient_accumulation.run)
    assert evidence.verdict == Verdict.PASS, evidence.summary
    plan = run.document("gradient_accumulation", "plan.json")
    assert plan["packing"]["packed"]
    # Accumulated packs of two rows against one padded batch.
    assert value(evidence, "gradient_difference") < TOLERANCE
    assert value(evidence, "packed_loss_difference") < TOLERANCE
    assert value(evidence, "padding_share") == 0
    assert 0 < value(evidence, "padding_share_if_padded") < 1
    assert "rows a step, rows packed (sdpa)" in evidence.summary
    run.resume()
    assert run.trained["packing"]["packed"]
