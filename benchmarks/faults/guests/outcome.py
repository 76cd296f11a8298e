"""What `tuneline data prepare` made of a guest, read from the files that it leaves."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from benchmarks.faults.guests.guest import DATA_ITEMS, Guest, Record

_WORD = re.compile(r"\w+")
_PLAIN = re.compile(r"[a-z]+")
# How the dataset writes a call.
_CALL = re.compile(r"<tool called>\n(.*)\n</tool called>")
_BALANCING = "distribution_balancing"


@dataclass(frozen=True)
class Outcome:
    """A guest's rows after the data phase.

    Attributes:
        verdicts: by data item.
        kept: clean rows in the dataset.
        sampled: clean rows that balancing took out by its rule.
        lost: clean rows that went otherwise, by item and reason code.
        torn: the first word of each answer that was shared with the turns before it and no longer
            is, with the number of its line.
        missed: planted faults that were not found by their item, or took other rows along.
    """

    clean: int
    verdicts: dict[str, str]
    kept: int
    sampled: int
    lost: Counter[str]
    torn: list[tuple[int, str]]
    missed: list[str]

    @property
    def kept_share(self) -> float:
        """The share of clean rows that reach the dataset, without those sampled by the rule."""
        return self.kept / max(1, self.clean - self.sampled)

    def wrong_verdicts(self, guest: Guest) -> dict[str, str]:
        """Return the verdicts of data items that are not right for the guest."""
        return {
            item: self.verdicts[item]
            for item in DATA_ITEMS
            if self.verdicts[item] not in guest.verdicts[item]
        }


def read_outcome(guest: Guest, out: Path) -> Outcome:
    """Compare the output folder of a call with the guest that it was called with."""
    import pyarrow.parquet as pq

    dataset, rejected = out / "dataset.parquet", out / "quarantine" / "rejected.parquet"
    rows = pq.read_table(dataset).to_pylist() if dataset.exists() else []
    gone = {row["source_line"]: row for row in pq.read_table(rejected).to_pylist()}
    kept = {row["source_line"] for row in rows}
    clean = range(1, len(guest.rows) + 1)
    codes = Counter(
        f"{gone[n]['item']}: {_code(gone[n])}" if n in gone else "no trace"
        for n in clean
        if n not in kept
    )
    sampled = sum(count for code, count in codes.items() if code.startswith(_BALANCING))
    lines, result = guest.lines(), json.loads((out / "result.json").read_text(encoding="utf-8"))
    return Outcome(
        len(clean),
        {item["item"]: item["verdict"] for item in result["items"]},
        len(kept.intersection(clean)),
        sampled,
        Counter({code: n for code, n in codes.items() if not code.startswith(_BALANCING)}),
        [
            (row["source_line"], word)
            for row in rows
            for word in torn_words(lines[row["source_line"] - 1], row["messages"])[:1]
        ],
        list(_missed(guest, gone, rows)),
    )


def _code(reject: dict[str, Any]) -> str:
    return str(reject["reason"]).split(":")[0]


def _missed(guest: Guest, gone: dict[int, Any], rows: list[Any]) -> Iterator[str]:
    """Yield what is wrong with each planted fault, in words."""
    text = "\n".join(turn["content"] for row in rows for turn in row["messages"])
    for fault, lines in guest.fault_lines():
        rejects = [gone[n] for n in lines if n in gone]
        taken = [r for r in rejects if r["item"] == fault.item and _code(r) in fault.reasons]
        others = [r for r in rejects if r not in taken and r["item"] != _BALANCING]
        if len(taken) != fault.removed or others:
            said = ", ".join(f"{r['item']}: {_code(r)}" for r in rejects) or "nothing"
            yield f"{fault.name}: {said}"
        if left := [value for value in fault.gone if value in text]:
            yield f"{fault.name}: {left[0]!r} is in the dataset"


def torn_words(before: Record, after: list[dict[str, str]]) -> list[str]:
    """Return the words that an answer shared with the turns before it, and no longer does.

    Args:
        before: the record as the team wrote it.
        after: the turns of the dataset, whose answers are in the same order; calls are text there.
    """
    raw = [{**turn, "content": _said(turn)} for turn in before["messages"]]
    made = [{**turn, "content": _CALL.sub(_arguments, turn["content"])} for turn in after]
    torn: list[str] = []
    for (old, asked), (new, kept) in zip(_answers(raw), _answers(made), strict=False):
        torn += _torn_values(old, asked, new, kept) or _torn_run(old, asked, new, kept)
    return torn


def _said(turn: dict[str, Any]) -> str:
    """Return a turn's text with the arguments of its calls."""
    calls = turn.get("tool_calls") or ()
    return " ".join([turn["content"], *(call["function"]["arguments"] for call in calls)])


def _arguments(call: re.Match[str]) -> str:
    """Return the arguments of a call in the dataset, as a record writes them."""
    return json.dumps(json.loads(call[1])["arguments"])


def _answers(turns: list[dict[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield each answer with all that was said before it."""
    for number, turn in enumerate(turns):
        if turn["role"] == "assistant":
            yield turn["content"], "\n".join(t["content"] for t in turns[:number])


def _torn_values(old: str, asked: str, new: str, kept: str) -> list[str]:
    """Return the values of a JSON answer that stood in the question word for word, and don't."""
    try:
        before, after = json.loads(old), json.loads(new)
    except ValueError:
        return []
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return []
    copied = [key for key, value in before.items() if str(value).casefold() in asked.casefold()]
    return [
        str(before[key]) for key in copied if str(after.get(key)).casefold() not in kept.casefold()
    ]


def _torn_run(old: str, asked: str, new: str, kept: str) -> list[str]:
    """Align both answers by words; where all words of a run were shared, all must still be.

    Of words that stay as they are, those that look like a value count: "from" copies nothing. A
    digit, and a word of two letters, may stand in both by chance.
    """
    valued = {word[0].casefold() for word in _WORD.finditer(old) if not _is_plain(old, word)}
    a, b = _words(old), _words(new)
    shared, still = {word for word in _words(asked) if _is_telling(word)}, set(_words(kept))
    torn: list[str] = []
    for kind, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        copied = [word for word in a[i:j] if word in shared]
        lost = [word for word in b[k:m] if word not in still]
        if kind == "equal":
            torn += [word for word in copied if word in valued and word not in still]
        elif kind == "replace" and copied:
            whole = len(copied) == j - i
            torn += copied[:1] if (lost if whole else len(lost) == m - k) else []
    return torn


def _is_plain(text: str, word: re.Match[str]) -> bool:
    """Return True for a word in lower case, or with a capital that only begins a sentence."""
    starts = not (before := text[: word.start()].rstrip(" \n\"'(")) or before[-1] in ".!?:"
    return bool(_PLAIN.fullmatch(word[0].lower() if starts else word[0]))


def _is_telling(word: str) -> bool:
    return len(word) > (1 if word.isdecimal() else 2)


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]
