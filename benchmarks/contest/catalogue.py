"""The benchmarks, by name. Importing this loads none of them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.contest.options import Options
    from benchmarks.contest.report import Report

# Names, and what each compares. Each is a module of `benchmarks` with a function `run`.
BENCHES = {
    "dedup": "near-duplicates against datasketch and rensa",
    "pii": "personal data against Presidio, without and with its NER",
    "tokens": "the token audit against the bare tokenizer",
    "data": "`data prepare` from raw rows to the dataset, step by step",
    "train": "training against TRL's SFTTrainer",
    "gateway": "what the gateway adds to a request and a stream, beside other gateways",
    "latency": "what the client of the latency benchmark adds, and guidellm where it is installed",
    "regression": "verdicts of base_regression on harmless adapters and on forgetful ones",
    "drift": "detection of drift and false alarms, on public sets of intents",
    "coldstart": "the first request to a fresh server, cold and warmed up",
    "pipeline": "the orchestration's share of the latest demo run",
}


def load(name: str) -> Callable[[Options], Report]:
    """Return the function `run` of a benchmark."""
    found: Callable[[Options], Report] = import_module(f"benchmarks.{name}").run
    return found
