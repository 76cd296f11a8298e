"""determinism: the same prompt at temperature 0 gives the same answer, alone and in a batch.

Method: prompts of the validation split are asked repeatedly, alone and among other prompts in
one batch, and each answer is compared with the first one alone. In a batch engines sum in
another order, so the same prompt may end in another token (vLLM documents this for its
batches). The verdict is on the parsed structure of the answers where the task is structured,
since callers act on that; the share of equal bytes is reported beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tuneline.data.tables.rows import Row
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.harness.answers import structure_of
from tuneline.harness.rows import validation_rows
from tuneline.harness.served_models import candidate, scoring_threads, serve
from tuneline.run import StepContext
from tuneline.serving.client.chat_protocol import Messages
from tuneline.serving.client.client import EngineClient
from tuneline.serving.engines import get_engine


@dataclass(frozen=True)
class Repeats:
    """All answers to one prompt.

    Attributes:
        row_id: the row whose prompt was asked.
        alone: the answers to the prompt alone; the first is the reference.
        batched: the answers to the prompt among others.
    """

    row_id: str
    alone: tuple[str, ...]
    batched: tuple[str, ...]

    def compared(self, mode: str) -> tuple[str, ...]:
        """Return the answers of one mode, `alone` or `batched`, without the reference."""
        return self.alone[1:] if mode == "alone" else self.batched


def identical_share(
    repeats: Sequence[Repeats], mode: str, view: Callable[[str], str] = str
) -> float:
    """Return the share of repeats that are equal to their reference.

    Args:
        repeats: answers by prompt, at least one.
        mode: `alone` or `batched`.
        view: the part of an answer that is compared; by default all of it.
    """
    same = [
        view(text) == view(entry.alone[0]) for entry in repeats for text in entry.compared(mode)
    ]
    return round(sum(same) / len(same), 4)


def judge(
    repeats: Sequence[Repeats], label_field: str | None, min_share: float
) -> list[Measurement]:
    """Compare the answers' structure, alone and batched, with the configured limit.

    Args:
        repeats: answers by prompt, at least one.
        label_field: the field of a JSON answer that holds the class.
        min_share: the smallest share of repeats with the structure of their reference.
    """
    structure = partial(structure_of, label_field=label_field)
    found = []
    for mode in ("alone", "batched"):
        same = identical_share(repeats, mode, structure)
        found += [
            measure(f"identical_structure_{mode}", same, "share", ">=", min_share),
            measure(f"identical_bytes_{mode}", identical_share(repeats, mode), "share"),
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

    Each batch puts the prompt among other neighbours and at another place, so that no two
    batches are alike.

    Args:
        client: a client of the server.
        rows: the rows whose prompts are repeated.
        filler: other prompts for the batches, at least one.
        repeats: number of times that each prompt is asked in each mode.
        parallel: size of a batch.
        max_tokens: limit of an answer, in tokens.
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
    """Repeat prompts of the validation split against a server of the shipped bytes."""
    settings, parallel = ctx.config.evaluation, max(2, ctx.config.deployment.parallel)
    rows = validation_rows(ctx, need=2)
    count = min(settings.determinism_prompts, len(rows) - 1)
    chosen = candidate(ctx)
    with (
        serve(
            chosen.model, ctx.config.deployment, threads=scoring_threads(), parallel=parallel
        ) as server,
        server.client() as client,
    ):
        repeats = collect(
            client,
            rows[:count],
            [row.prompt for row in rows[count:]],
            repeats=settings.determinism_repeats,
            parallel=parallel,
            max_tokens=settings.max_new_tokens,
        )
    ctx.write_json("repeats.json", [vars(entry) for entry in repeats])
    measurements = judge(repeats, ctx.config.data.label_field, settings.min_identical_share)
    shares = {m.name: m.value for m in measurements}
    summary = (
        f"{count} prompts asked {settings.determinism_repeats} times each of "
        f"{get_engine(chosen.model.engine).title}: the "
        f"structure of the answer stays the same in {shares['identical_structure_alone']:.0%} of "
        f"repeats alone and {shares['identical_structure_batched']:.0%} in batches of {parallel}, "
        f"its bytes in {shares['identical_bytes_alone']:.0%} and "
        f"{shares['identical_bytes_batched']:.0%}"
    )
    return ctx.conclude(
        summary,
        [
            *measurements,
            measure("prompts", count, "prompts"),
            measure("repeats", settings.determinism_repeats, "repeats"),
            measure("engine", chosen.model.engine, "engine"),
            measure("candidate_sha256", chosen.model.sha256, "sha256"),
        ],
    )
