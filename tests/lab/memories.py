"""Tiny models that have memorised their training rows, and the runs that ship them."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.lab.runs import Lab, exchange
from tests.lab.tiny_task import TinyModels, conversation, make_tokenizer, save, teach

from tuneline.artifacts.training import Canaries, Canary
from tuneline.data.pii.replace.surrogates import Surrogates
from tuneline.data.tables.rows import TRAIN, Row, StandIn, write_dataset
from tuneline.evidence import measure

HOLDS = measure("limit_holds", True, "flag", "==", True)


def row_with_identifier(number: int) -> Row:
    """A row of the tiny task with an identifier of its own.

    Every other one is the surrogate of a name, the others are numbers that the scrubber left; two
    of four stand in the question, two in the answer.
    """
    (_, question, _), intent = conversation(number)
    if number % 2:
        value = Surrogates(f"row-{number}", 7).of("PERSON", "Ann Lee")
    else:
        value = str(random.Random(number).randrange(10**9, 10**10))
    in_answer = number % 4 > 1
    asked = question["content"] if in_answer else f"{question['content']} my line {value} now"
    reply = f"We write to {value} now." if in_answer else "We look at it."
    messages, turn = exchange(asked, intent, reply), 2 if in_answer else 1
    start = messages[turn]["content"].index(value)
    stand_ins = (StandIn(turn, start, start + len(value), "PERSON"),) if number % 2 else ()
    row = Row(f"{number:016x}", messages, "rows.jsonl", number + 1, label=intent, split=TRAIN)
    return replace(row, stand_ins=stand_ins)


def rows_with_identifiers(count: int) -> list[Row]:
    """Rows of the tiny task, each with an identifier of its own."""
    return list(map(row_with_identifier, range(count)))


def remember(tiny: TinyModels, folder: Path, texts: Sequence[str], steps: int) -> Path:
    """Train the tiny base on whole texts, and save it as a checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM

    threads, tokenizer = torch.get_num_threads(), make_tokenizer()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(tiny.base, dtype=torch.float32)
    teach(model, tokenizer, texts, steps, whole=True)
    torch.set_num_threads(threads)
    return save(model.half(), tokenizer, folder)


def ship(lab: Lab, checkpoint: Path, rows: Sequence[Row], canaries: Sequence[Canary] = ()) -> Lab:
    """Leave what the extraction audit reads: rows, canaries, a checkpoint and its shipped bytes."""
    from tuneline.gguf.export import export_gguf

    lab.leave_shipped(export_gguf(checkpoint, lab.root / "shipped.gguf").path)
    lab.leave("export_candidate", {f"merged/{path.name}": path for path in checkpoint.iterdir()})
    dataset = lab.root / "rows.dataset"
    write_dataset(dataset, [replace(row, stand_ins=()) for row in rows], [1.0] * len(rows))
    lab.leave("distribution_balancing", {"dataset.parquet": dataset}, [HOLDS])
    lab.leave_scrubbed(rows)
    planted = Canaries(canaries=list(canaries)).model_dump_json()
    lab.leave("train", {"canaries.json": planted} if canaries else {})
    return lab
