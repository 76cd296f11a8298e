"""`tuneline bench`: one benchmark, or all with a file of results."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.contest.contest import Options
from benchmarks.contest.report import Report, describe, show
from tuneline.errors import EXIT_FAILED, EXIT_OK, TunelineError, UserError

ALL = "all"
RESULTS = Path("bench") / "results.json"
# Names, and what each compares. Each is a module of `benchmarks` with a function `run`.
BENCHES = {
    "dedup": "near-duplicates against datasketch and rensa",
    "pii": "personal data against Presidio, without and with its NER",
    "tokens": "the token audit against the bare tokenizer",
    "data": "`data prepare` from raw rows to the dataset, step by step",
    "train": "training against TRL's SFTTrainer",
    "gateway": "what the gateway adds to a request and a stream, beside other gateways",
    "drift": "detection of drift and false alarms, on public sets of intents",
    "coldstart": "the first request to a fresh server, cold and warmed up",
    "pipeline": "the orchestration's share of the latest demo run",
}


def load(name: str) -> Callable[[Options], Report]:
    """Return the function `run` of a benchmark."""
    found: Callable[[Options], Report] = import_module(f"benchmarks.{name}").run
    return found


def bench(
    name: str,
    *,
    as_json: bool,
    source: Path | None = None,
    runs: int | None = None,
    rows: int | None = None,
) -> int:
    """Run one benchmark, or all; one of all that fails does not stop the others, exit code 1.

    Args:
        source: file of rows to use in place of generated ones, for one benchmark.
        rows: number of rows to generate or to take.

    Raises:
        UserError: if there is no such benchmark, or something it needs is missing.
        TunelineError: if a system failed.
    """
    if name not in (*BENCHES, ALL):
        raise UserError(f"there is no benchmark {name!r}; choose {', '.join(BENCHES)} or {ALL}")
    for number, what in ((runs, "--runs"), (rows, "--rows")):
        if number is not None and number < 1:
            raise UserError(f"{what} must be 1 or more, not {number}")
    if source is not None and not source.is_file():
        raise UserError(f"--input: {source} does not exist or is not a file")
    if source is not None and name == ALL:
        raise UserError("--input goes with one benchmark; name it in place of `all`")
    entries: list[dict[str, Any]] = []
    failed = False
    for each in BENCHES if name == ALL else (name,):
        try:
            report = _run(each, source, runs, rows)
        except TunelineError as error:
            if name != ALL:
                raise
            failed = failed or not isinstance(error, UserError)
            entries.append({"bench": each, "not_measured": str(error)})
            print(f"{each}: not measured: {error}", file=sys.stderr)
            continue
        entries.append(asdict(report))
        if not as_json:
            show(report)
    document = entries[0]
    if name == ALL:
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        document = {"finished_at": finished, "machine": describe(), "benches": entries}
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(document, indent=1))
        print(f"written to {RESULTS}", file=sys.stderr)
    if as_json:
        print(json.dumps(document, indent=1))
    return EXIT_FAILED if failed else EXIT_OK


def _run(name: str, source: Path | None, runs: int | None, rows: int | None) -> Report:
    started = time.monotonic()

    def log(line: str) -> None:
        print(f"{name} [{time.monotonic() - started:5.0f} s] {line}", file=sys.stderr, flush=True)

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with tempfile.TemporaryDirectory(prefix=f"tuneline-bench-{name}-") as folder:
        machine = describe()
        report = load(name)(Options(Path(folder), log, source, runs, rows))
        return replace(report, bench=name, machine=machine)
