"""Guests and families through the data and training steps of a run, with tiny random models."""

import pytest
from benchmarks.faults.guests.__main__ import settings_of
from benchmarks.faults.guests.families import FAMILIES, write_base
from benchmarks.faults.guests.guest import TRAINING_ITEMS
from benchmarks.faults.guests.shapes import SHAPES, guest
from tests.lab.runs import Lab

from tuneline.catalogue import DATA_ORDER, RUN_ORDER
from tuneline.data.gates.run_gate import run_gate
from tuneline.errors import UserError
from tuneline.verdicts import checklist

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
LAST = "loss_monitoring"
SERVED = ("Llama", "Qwen2", "Qwen3", "Gemma2", "Gemma3", "Phi3")


@pytest.fixture
def trained(tmp_path):
    """Carries out a run up to the last item of training; returns what is wrong with its items."""

    def run(name, family, rows=None):
        trial = guest(name, 4, rows, FAMILIES[family].end)
        source = trial.write(tmp_path / "rows.jsonl")
        base = write_base(FAMILIES[family], tmp_path / "base")
        document = settings_of(trial)
        document["data"] |= {"source": str(source), "license": "MIT", "pii_ner": False}
        document["data"]["pii_canaries"] = 20
        document["training"]["rehearsal_rows"] = 0  # a random model has no answers worth keeping
        lab = Lab(tmp_path, {**document, "base_model": str(base)})
        steps = [step.id for step in RUN_ORDER]
        for step in steps[: steps.index(LAST) + 1]:
            lab.execute(step)
            if step in DATA_ORDER:
                run_gate(lab.run, step)
        found = {row.item: row for row in checklist(lab.run)}
        return [
            f"{item} is {found[item].verdict}: {found[item].because}"
            for item in TRAINING_ITEMS
            if found[item].verdict not in trial.verdicts[item]
        ]

    return run


@pytest.mark.parametrize("name", SHAPES)
def test_the_training_items_of_a_shape(name, trained):
    assert trained(name, "qwen2_5") == []


# One family of each architecture; those that the laptop's engine can't serve are refused.
@pytest.mark.parametrize("family", {f.architecture: n for n, f in FAMILIES.items()}.values())
def test_the_training_items_of_an_architecture(family, trained):
    if FAMILIES[family].architecture in SERVED:
        assert trained("several_turns", family, rows=120) == []
    else:
        with pytest.raises(UserError, match=f"{FAMILIES[family].architecture}ForCausalLM can't be"):
            trained("several_turns", family, rows=120)
