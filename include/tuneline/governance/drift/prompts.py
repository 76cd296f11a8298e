"""What drift is measured on: prompts of a dataset by split, and the requests of a log by day."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tuneline.data.pii.replace.scrubber import placeholder, places, replace_hits
from tuneline.data.tables.rows import base_id
from tuneline.errors import UserError
from tuneline.governance.drift.bets import Counts, Floats

NEIGHBOURS = 10
# Characters of a prompt that are looked at. What a prompt is about shows long before.
MOST_CHARS = 4000
BUCKETS = 2**18
# Parts of the unit length for n-grams of characters and for words.
CHARACTERS, WORDS = 0.8, 0.6
_BLOCK = 256


@dataclass(frozen=True)
class Embedding:
    """Inverse document frequencies of n-grams."""

    idf: tuple[Any, Any]  # of character n-grams and of words, shape (BUCKETS,) each

    @classmethod
    def fit(cls, texts: Sequence[str]) -> Embedding:
        """Return the embedding of training prompts."""
        found = []
        for counts in _counts(texts):
            frequency = np.bincount(counts.indices, minlength=BUCKETS)
            idf = np.log((1 + len(texts)) / (1 + frequency)) + 1
            found.append(idf.astype(np.float32))
        return cls((found[0], found[1]))

    def __call__(self, texts: Sequence[str]) -> Any:
        """Return a sparse matrix with a row of unit length for each text."""
        from scipy import sparse
        from sklearn.preprocessing import normalize

        if not texts:
            return sparse.csr_matrix((0, 2 * BUCKETS), dtype=np.float32)
        parts = []
        weights = (CHARACTERS, WORDS)
        for counts, idf, weight in zip(_counts(texts), self.idf, weights, strict=True):
            counts.data = (1 + np.log(counts.data)) * idf[counts.indices]
            parts.append(normalize(counts) * np.float32(weight))
        return sparse.hstack(parts, format="csr")


def _counts(texts: Sequence[str]) -> list[Any]:
    from sklearn.feature_extraction.text import HashingVectorizer

    cut = [text[:MOST_CHARS].lower() for text in texts]
    settings: dict[str, Any] = {
        "n_features": BUCKETS,
        "alternate_sign": False,
        "norm": None,
        "dtype": np.float32,
    }
    characters = HashingVectorizer(analyzer="char_wb", ngram_range=(2, 3), **settings)
    # Words of one letter count too: in some languages they are all that there is.
    words = HashingVectorizer(token_pattern=r"(?u)\w+", **settings)  # noqa: S106 - of words
    return [characters.transform(cut), words.transform(cut)]


def strangeness(queries: Any, reference: Any, own: Counts | None = None) -> Floats:
    """Return 1 minus the mean similarity of each query to its nearest reference rows.

    Rows have unit length; `own` is the index in the reference of each query, which does not count
    as its own neighbour.
    """
    near = min(NEIGHBOURS, reference.shape[0] - (own is not None))
    found = np.empty(queries.shape[0])
    transposed = reference.T.tocsr()
    # Blocks of the similarity matrix keep memory bounded.
    for start in range(0, queries.shape[0], _BLOCK):
        block = (queries[start : start + _BLOCK] @ transposed).toarray()
        if own is not None:
            block[np.arange(len(block)), own[start : start + _BLOCK]] = -1
        block.partition(block.shape[1] - near, axis=1)
        found[start : start + len(block)] = 1 - block[:, -near:].mean(axis=1)
    return found


# Fewer prompts than this say nothing about a distribution.
MIN_WINDOW = 20
# Lines without a timestamp, where days cannot be told apart.
UNDATED = ""
# A line of the gateway has one of these even if its texts were not logged.
_GATEWAY_FIELDS = ("request_id", "timestamp", "redaction_failed")


@dataclass(frozen=True)
class Prompt:
    """One request of production, or one row of a dataset."""

    line: int  # in the file that it came from, from 1
    text: str | None  # the last user turn; None if it was not logged or redacted as a whole
    label: str | None = None  # that the model answered with
    logprob: float | None = None  # mean token log-probability of the answer
    fallback: bool | None = None  # another model answered
    rejected: str | None = None  # the reason for which its row can't be used


Days = Mapping[str, Sequence[Prompt]]
Reference = dict[str, list[Prompt]]


def last_user_turn(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the prompt of a conversation, its last user turn; None if it has none."""
    turns = [m["content"] for m in messages if m.get("role") == "user"]
    return str(turns[-1]) if turns else None


def read_reference(
    path: Path, surrogates: Mapping[str, Sequence[tuple[str, str]]] = {}
) -> Reference:
    """Read the training and validation prompts of a dataset, with their labels.

    A placeholder takes the place of each of the `surrogates`, entity and value by row id. Hold-out
    rows are not read: evaluation alone may look at them.
    """
    import pyarrow.parquet as pq

    try:
        columns = ["row_id", "messages", "split"]
        columns += [name for name in pq.read_schema(path).names if name == "label"]
        table = pq.read_table(path, columns=columns, filters=[("split", "!=", "holdout")])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} is not a dataset of `tuneline data prepare` (row_id, messages, split): {error}"
        ) from None
    prompts: Reference = {"train": [], "validation": []}
    for number, row in enumerate(table.to_pylist(), 1):
        text = last_user_turn(row["messages"])
        if text is not None and row["split"] in prompts:
            own = {value: entity for entity, value in surrogates.get(base_id(row["row_id"]), ())}
            text = replace_hits(text, places(text, own), placeholder, Counter())
            prompts[row["split"]].append(Prompt(number, text, row.get("label")))
    if len(prompts["train"]) < MIN_WINDOW:
        raise UserError(
            f"{path} has {len(prompts['train'])} training prompts; at least {MIN_WINDOW} are "
            "needed to compare with"
        )
    return prompts


def read_logs(path: Path, labels: Sequence[str] = ()) -> dict[str, list[Prompt]]:
    """Read a production log, by day.

    A line has `messages` or `prompt` and any of the gateway's fields; `labels` are those that can
    be told in an answer. Days are sorted; requests without a timestamp come first, as `UNDATED`.
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
    logprob, label = row.get("mean_logprob"), row.get("label")
    return Prompt(
        number,
        text,
        label if isinstance(label, str) else label_of(row.get("completion"), labels),
        float(logprob) if logprob is not None else None,
        row["fallback_reason"] is not None if "fallback_reason" in row else None,
    )


def label_of(answer: str | None, labels: frozenset[str]) -> str | None:
    """Return the label of an answer: the answer itself, or a value of its JSON."""
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
