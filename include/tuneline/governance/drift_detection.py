"""drift_detection: production prompts can be compared with the training distribution.

The baseline for that comparison is stored, and the detector is tried on it: validation prompts
of the dataset must not be called drift (a false alarm), and general questions that the model was
not trained for must be. `tuneline.governance.drift.measures` has the measures and their sources.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from tuneline.artifacts.data import DATASET
from tuneline.errors import UserError
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.governance.drift.measures import Baseline, Measure, compare
from tuneline.harness.general_questions import load_questions
from tuneline.run import StepContext

# Fewer prompts than this say nothing about a distribution.
MIN_WINDOW = 20
BASELINE_SCHEMA = "tuneline/drift-baseline/1"


def any_drifted(measures: Sequence[Measure]) -> bool:
    """Return True if any of the measures calls drift."""
    return any(m.drifted for m in measures)


def last_user_turn(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the prompt of a conversation, its last user turn; None if it has none."""
    turns = [m["content"] for m in messages if m.get("role") == "user"]
    return str(turns[-1]) if turns else None


def read_reference(path: Path) -> dict[str, list[str]]:
    """Read the prompts of a dataset, by split.

    Args:
        path: a `dataset.parquet` of the data phase.

    Raises:
        UserError: if the file lacks the columns of a dataset.
    """
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["messages", "split"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} is not a dataset of `tuneline data prepare` (columns messages, split): {error}"
        ) from None
    prompts: dict[str, list[str]] = {"train": [], "validation": [], "holdout": []}
    for row in table.to_pylist():
        prompt = last_user_turn(row["messages"])
        if prompt is not None:
            prompts.setdefault(row["split"], []).append(prompt)
    return prompts


def read_logs(path: Path) -> list[tuple[str | None, str]]:
    """Read the timestamp and the prompt of each line of a production log.

    Raises:
        UserError: if the file is missing or has too few prompts, or a line has none; the
            message names the line.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a JSONL file of production prompts")
    found: list[tuple[str | None, str]] = []
    with path.open(encoding="utf-8", errors="replace") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                prompt = row.get("prompt") or last_user_turn(row.get("messages") or [])
            except (json.JSONDecodeError, AttributeError, TypeError, KeyError):
                prompt = None
            if not isinstance(prompt, str):
                raise UserError(
                    f"{path}, line {number}: expected a JSON object with `messages` or `prompt`"
                )
            found.append((row.get("timestamp"), prompt))
    if len(found) < MIN_WINDOW:
        raise UserError(
            f"{path} has {len(found)} prompts; at least {MIN_WINDOW} are needed to speak of drift"
        )
    return found


def detect(
    reference: Mapping[str, list[str]],
    logs: Sequence[tuple[str | None, str]],
    p_value: float = 0.01,
) -> dict[str, Any]:
    """Compare logs with a reference, overall and, on drift, day by day.

    Returns:
        `drifted`; `since`, the first day that drifts by itself (RFC 3339 date) or the first
        day of the log where none does; `measures`.
    """
    held_out = [*reference["validation"], *reference["holdout"]]
    baseline = Baseline(reference["train"], held_out)
    measures = compare(baseline, [prompt for _, prompt in logs], p_value)
    drifted = any_drifted(measures)
    return {
        "drifted": drifted,
        "since": _since(baseline, logs, p_value) if drifted else None,
        "measures": [m.as_dict() for m in measures],
    }


def _since(
    baseline: Baseline, logs: Sequence[tuple[str | None, str]], p_value: float
) -> str | None:
    days: dict[str, list[str]] = {}
    for timestamp, prompt in logs:
        if timestamp:
            days.setdefault(str(timestamp)[:10], []).append(prompt)
    for day in sorted(days):
        enough = len(days[day]) >= MIN_WINDOW
        if enough and any_drifted(compare(baseline, days[day], p_value / len(days))):
            return day
    return min(days) if days else None


def compare_files(reference: str, logs: Path, p_value: float = 0.01) -> dict[str, Any]:
    """Compare a log file with a dataset by path or URI, as `tuneline drift` does.

    Raises:
        UserError: if a file is missing or malformed.
    """
    parsed = urlparse(reference)
    with tempfile.TemporaryDirectory(prefix="tuneline-") as scratch:
        if parsed.scheme == "s3":
            from tuneline.store import open_store

            folder, _, name = reference.rpartition("/")
            path = Path(scratch) / name
            open_store(folder).get_file(name, path)
        else:
            path = Path(unquote(parsed.path) if parsed.scheme == "file" else reference)
        if not path.is_file():
            raise UserError(f"{reference} does not exist; name a dataset.parquet")
        return detect(read_reference(path), read_logs(logs), p_value)


def judge(
    baseline: Baseline, calm: Sequence[Measure], alarmed: Sequence[Measure]
) -> list[Measurement]:
    """Judge the detector by what it called drift.

    Args:
        baseline: the stored baseline.
        calm: measures of prompts of the training distribution.
        alarmed: measures of foreign prompts.
    """
    return [
        measure("baseline_prompts", len(baseline.train), "prompts", ">=", MIN_WINDOW),
        measure("validation_called_drift", any_drifted(calm), "flag", "==", False),
        measure("foreign_called_drift", any_drifted(alarmed), "flag", "==", True),
        *(measure(f"validation_{m.name}", m.value, "score") for m in calm),
        *(measure(f"validation_{m.name}_p", m.p_value, "probability") for m in calm),
        *(measure(f"foreign_{m.name}_p", m.p_value, "probability") for m in alarmed),
    ]


def run(ctx: StepContext) -> Evidence:
    """Store the baseline and try the detector on prompts whose answer is known."""
    p_value = ctx.config.governance.drift_p_value
    reference = read_reference(DATASET.fetch(ctx))
    ctx.write_json("baseline.json", {"schema": BASELINE_SCHEMA, "prompts": reference})
    # The clean window must not be part of the null that it is compared with.
    clean = reference["validation"]
    baseline = Baseline(reference["train"], reference["holdout"])
    smallest = min(len(clean), len(baseline.held_out))
    window = measure("smallest_window", smallest, "prompts", ">=", MIN_WINDOW, on_breach="warn")
    if not window.ok:
        return ctx.conclude(
            f"the baseline is stored, but {len(clean)} validation and {len(baseline.held_out)} "
            f"hold-out prompts are too few to try the detector (at least {MIN_WINDOW} each)",
            [window],
        )
    foreign = [question.prompt for question in load_questions()]
    calm = compare(baseline, clean, p_value)
    alarmed = compare(baseline, foreign, p_value)
    ctx.write_json(
        "trial.json",
        {"validation": [m.as_dict() for m in calm], "foreign": [m.as_dict() for m in alarmed]},
    )
    validation = "called drift (a false alarm)" if any_drifted(calm) else "not called drift"
    seen = "called drift" if any_drifted(alarmed) else "not called drift"
    return ctx.conclude(
        f"baseline of {len(baseline.train)} prompts stored; validation prompts are {validation}, "
        f"{len(foreign)} foreign prompts are {seen}",
        judge(baseline, calm, alarmed),
    )
