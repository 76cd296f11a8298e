"""What drift is measured on: prompts of a dataset by split, and the requests of a log by day."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.errors import UserError

# Fewer prompts than this say nothing about a distribution.
MIN_WINDOW = 20
# Lines without a timestamp, where days cannot be told apart.
UNDATED = ""
# A line of the gateway has one of these even if its texts were not logged.
_GATEWAY_FIELDS = ("request_id", "timestamp", "redaction_failed")


@dataclass(frozen=True)
class Prompt:
    """One request of production, or one row of a dataset.

    Attributes:
        line: line in the file that it came from, counted from 1.
        text: the last user turn, None if it was not logged or redacted as a whole.
        label: label that the model answered with, None if it is not known.
        logprob: mean token log-probability of the answer, None if it is not known.
        fallback: True if another model answered, None if it is not known.
    """

    line: int
    text: str | None
    label: str | None = None
    logprob: float | None = None
    fallback: bool | None = None


Days = Mapping[str, Sequence[Prompt]]
Reference = dict[str, list[Prompt]]


def last_user_turn(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the prompt of a conversation, its last user turn; None if it has none."""
    turns = [m["content"] for m in messages if m.get("role") == "user"]
    return str(turns[-1]) if turns else None


def read_reference(path: Path) -> Reference:
    """Read the training and validation prompts of a dataset, with their labels.

    Hold-out rows are not read: evaluation alone may look at them.

    Args:
        path: a `dataset.parquet` of the data phase.

    Raises:
        UserError: if the file lacks the columns of a dataset.
    """
    import pyarrow.parquet as pq

    try:
        columns = ["messages", "split"]
        columns += [name for name in pq.read_schema(path).names if name == "label"]
        table = pq.read_table(path, columns=columns, filters=[("split", "!=", "holdout")])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} is not a dataset of `tuneline data prepare` (columns messages, split): {error}"
        ) from None
    prompts: Reference = {"train": [], "validation": []}
    for number, row in enumerate(table.to_pylist(), 1):
        text = last_user_turn(row["messages"])
        if text is not None and row["split"] in prompts:
            prompts[row["split"]].append(Prompt(number, text, row.get("label")))
    if len(prompts["train"]) < MIN_WINDOW:
        raise UserError(
            f"{path} has {len(prompts['train'])} training prompts; at least {MIN_WINDOW} are "
            "needed to compare with"
        )
    return prompts


def read_logs(path: Path, labels: Sequence[str] = ()) -> dict[str, list[Prompt]]:
    """Read a production log, by day.

    Args:
        path: JSONL with `messages` or `prompt` on each line, and any of the gateway's fields.
        labels: labels of the dataset, so that one can be told in an answer.

    Returns:
        Requests by date (RFC 3339), sorted; those without a timestamp first, as `UNDATED`.

    Raises:
        UserError: if the file is missing or has too few requests, or a line is of another form;
            the message names the line.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a JSONL file of production prompts")
    known = frozenset(labels)
    days: dict[str, list[Prompt]] = {}
    with path.open(encoding="utf-8", errors="replace") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                prompt = _prompt(row, number, known)
                day = str(row.get("timestamp") or UNDATED)[:10]
            except (ValueError, AttributeError, TypeError, KeyError):
                raise UserError(
                    f"{path}, line {number}: expected a JSON object with `messages` or `prompt`"
                ) from None
            days.setdefault(day, []).append(prompt)
    total = sum(map(len, days.values()))
    if total < MIN_WINDOW:
        raise UserError(
            f"{path} has {total} prompts; at least {MIN_WINDOW} are needed to speak of drift"
        )
    return dict(sorted(days.items()))


def _prompt(row: Mapping[str, Any], number: int, labels: frozenset[str]) -> Prompt:
    text = row.get("prompt") or last_user_turn(row.get("messages") or [])
    if text is None and not any(name in row for name in _GATEWAY_FIELDS):
        raise ValueError("neither a prompt nor a line of the gateway")
    if not isinstance(text, str | None):
        raise TypeError("a prompt is text")
    logprob = row.get("mean_logprob")
    return Prompt(
        number,
        text,
        str(row["label"])
        if isinstance(row.get("label"), str)
        else label_of(row.get("completion"), labels),
        float(logprob) if logprob is not None else None,
        row["fallback_reason"] is not None if "fallback_reason" in row else None,
    )


def label_of(answer: str | None, labels: frozenset[str]) -> str | None:
    """Return the label of an answer: the answer itself, or a value of its JSON.

    Args:
        answer: what the model said, None if it is not known.
        labels: labels of the dataset.
    """
    if not isinstance(answer, str) or not labels:
        return None
    if answer.strip() in labels:
        return answer.strip()
    try:
        values = json.loads(answer)
    except ValueError:
        return None
    found = values.values() if isinstance(values, dict) else ()
    return next((v for v in found if isinstance(v, str) and v in labels), None)
