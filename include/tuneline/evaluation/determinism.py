"""Same prompt, temperature 0, again: same output, alone and inside a batch.

Proves how often a repeated prompt gives the answer it gave first: asked alone,
and asked while other prompts run in the same batch, where engines differ
because sums are taken in another order (vLLM documents the same for its
batches). The verdict is on the parsed structure of the answer where the task
is structured, since that is what callers act on; how often the bytes agree is
reported beside it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from tuneline.data.tables.rows import VALIDATION, Row
from tuneline.errors import UserError
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.harness.answers import structure_of
from tuneline.harness.rows import dataset_rows, of_split, spread
from tuneline.harness.served_models import candidate, scoring_threads, serve
from tuneline.run import StepContext
from tuneline.serving.client.chat_protocol import Messages
from tuneline.serving.client.client import EngineClient


@dataclass(frozen=True)
class Repeats:
    """All answers to one prompt; the first is the reference."""

    row_id: str
    alone: tuple[str, ...]
    batched: tuple[str, ...]


def identical_share(repeats: Sequence[Repeats], mode: str, label_field: str | None) -> float:
    """Share of repeats whose parsed structure is that of the prompt's first answer alone.

    Args:
        repeats: answers by prompt, at least one.
        mode: `alone` or `batched`.
        label_field: field of a JSON answer that holds the class.
    """
    agree = total = 0
    for entry in repeats:
        reference = structure_of(entry.alone[0], label_field)
        others = entry.alone[1:] if mode == "alone" else entry.batched
        agree += sum(structure_of(text, label_field) == reference for text in others)
        total += len(others)
    return agree / total


def identical_bytes(repeats: Sequence[Repeats], mode: str) -> float:
    """The same share on the bytes of the answers."""
    pairs = [
        (text, entry.alone[0])
        for entry in repeats
        for text in (entry.alone[1:] if mode == "alone" else entry.batched)
    ]
    return sum(text == first for text, first in pairs) / len(pairs)


def judge(
    repeats: Sequence[Repeats], label_field: str | None, min_share: float
) -> list[Measurement]:
    """The shares, alone and batched, against the configured limit."""
    found = []
    for mode in ("alone", "batched"):
        value = round(identical_share(repeats, mode, label_field), 4)
        found += [
            measure(f"identical_structure_{mode}", value, "share", ">=", min_share),
            measure(f"identical_bytes_{mode}", round(identical_bytes(repeats, mode), 4), "share"),
        ]
    return found


def collect(
    client: EngineClient,
    rows: Sequence[Row],
    filler: Sequence[Messages],
    *,
    repeats: int,
    parallel: int,
    max_tokens: int,
) -> list[Repeats]:
    """Ask each prompt repeatedly, alone and then among other prompts.

    Each repeat in a batch stands among other neighbours and at another place, so
    that the batch is really another one.

    Args:
        client: of the server.
        rows: the prompts.
        filler: other prompts for the batches, at least one.
        repeats: how often each prompt is asked in each mode.
        parallel: size of a batch.
        max_tokens: tokens of an answer.
    """
    collected = []
    for number, row in enumerate(rows):
        alone = [client.chat(row.prompt, max_tokens=max_tokens).text for _ in range(repeats)]
        batched = []
        for turn in range(repeats):
            start = number * repeats + turn
            batch = [filler[(start + k) % len(filler)] for k in range(parallel - 1)]
            place = start % parallel
            batch.insert(place, row.prompt)
            answers = client.complete_batch(batch, concurrency=parallel, max_tokens=max_tokens)
            batched.append(answers[place].text)
        collected.append(Repeats(row.row_id, tuple(alone), tuple(batched)))
    return collected


def run(ctx: StepContext) -> Evidence:
    """Repeat prompts of the validation split against the server of the shipped bytes."""
    settings, parallel = ctx.config.evaluation, max(2, ctx.config.deployment.parallel)
    rows = of_split(dataset_rows(ctx), VALIDATION)
    if len(rows) < 2:
        raise UserError("determinism needs two validation rows; raise data.validation_share")
    asked = spread(rows, min(settings.determinism_prompts, len(rows) - 1), ctx.config.training.seed)
    chosen_ids = {row.row_id for row in asked}
    filler = [row.prompt for row in rows if row.row_id not in chosen_ids]
    chosen = candidate(ctx)
    with (
        serve(chosen.file.path, ctx.config, threads=scoring_threads(), parallel=parallel) as server,
        server.client() as client,
    ):
        repeats = collect(
            client,
            asked,
            filler,
            repeats=settings.determinism_repeats,
            parallel=parallel,
            max_tokens=settings.max_new_tokens,
        )
    measurements = judge(repeats, ctx.config.data.label_field, settings.min_identical_share)
    (ctx.out / "repeats.json").write_text(
        json.dumps([vars(entry) for entry in repeats], indent=1, ensure_ascii=False)
    )
    shares = {m.name: m.value for m in measurements}
    summary = (
        f"llama.cpp, {len(asked)} prompts × {settings.determinism_repeats}: same structure "
        f"{shares['identical_structure_alone']:.0%} alone, "
        f"{shares['identical_structure_batched']:.0%} in batches of {parallel}; same bytes "
        f"{shares['identical_bytes_alone']:.0%} and {shares['identical_bytes_batched']:.0%}"
    )
    return ctx.conclude(
        summary,
        [
            *measurements,
            measure("prompts", len(asked), "prompts"),
            measure("repeats", settings.determinism_repeats, "repeats"),
            measure("engine", "llama_cpp", "engine"),
            measure("candidate_sha256", chosen.file.sha256, "sha256"),
        ],
    )
