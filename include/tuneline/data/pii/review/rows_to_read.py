"""Draw scrubbed rows, the risky ones more often, for a person to look for what was missed.

The draw depends on the rows alone, so that a sheet of other rows is recognised.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence

from tuneline.artifacts.answers import DrawnRow
from tuneline.data.pii.measure.planting import asks_for_data
from tuneline.data.tables.rows import Row

# From the most risky on; a row belongs to the first that fits.
STRATA = ("after_question", "digits", "names", "other")
ROWS = 200
# Half of the rows are shared out evenly among the strata, half by their sizes.
_EVENLY = 0.5
_DIGITS = re.compile(r"\d{3,}")
_WORD = re.compile(r"[^\W\d_]{3,}")
# A capital that does not begin a sentence.
_CAPITAL = re.compile(r"(?<=[^\W\d_][ ,])[A-ZÀ-Þ][^\W\d_]+")


def draw_rows(rows: Sequence[Row], count: int = ROWS) -> list[DrawnRow]:
    """Draw some of the scrubbed rows, the same for the same rows and count; all if not more."""
    shown = [_shown(row) for row in rows]
    words = Counter(
        word for turns in shown for word in {w.casefold() for t in turns for w in _WORD.findall(t)}
    )
    strata: dict[str, list[tuple[str, int]]] = {name: [] for name in STRATA}
    for number, (row, turns) in enumerate(zip(rows, shown, strict=True)):
        strata[_stratum(row, turns, words)].append((_hash(row), number))
    sizes = {name: len(members) for name, members in strata.items() if members}
    drawn = []
    for name, size in _share_out(sizes, min(count, len(rows))).items():
        for row_hash, number in sorted(strata[name])[:size]:
            row = rows[number]
            said = zip(row.messages, shown[number], strict=True)
            text = "\n\n".join(f"{message['role']}: {turn}" for message, turn in said)
            found = {"row_id": row.row_id, "row_hash": row_hash, "stratum": name, "text": text}
            drawn.append(DrawnRow(weight=sizes[name] / size, **found))
    return drawn


def _share_out(sizes: dict[str, int], count: int) -> dict[str, int]:
    """Return how many rows to draw from each stratum, at least one."""
    total = sum(sizes.values())
    more = max(0, count - len(sizes))
    wanted = {
        name: min(size, 1 + int(more * (_EVENLY / len(sizes) + (1 - _EVENLY) * size / total)))
        for name, size in sizes.items()
    }
    # What small strata can't use goes to the larger ones.
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        spare = max(0, count - sum(wanted.values()))
        wanted[name] = min(sizes[name], wanted[name] + spare)
    return wanted


def _hash(row: Row) -> str:
    turns = json.dumps([row.row_id, row.messages], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(turns.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _shown(row: Row) -> list[str]:
    """Return the turns of a row with surrogates as `[ENTITY]`."""
    texts = [message["content"] for message in row.messages]
    for entry in sorted(row.stand_ins, key=lambda entry: -entry.start):
        text = texts[entry.turn]
        texts[entry.turn] = f"{text[: entry.start]}[{entry.entity}]{text[entry.end :]}"
    return texts


def _stratum(row: Row, shown: Sequence[str], words: Counter[str]) -> str:
    roles = [message["role"] for message in row.messages]
    said = [re.sub(r"\[[A-Z_]+\]", "", text) for text in shown]
    for turn in range(1, len(said)):
        answers = roles[turn - 1 : turn + 1] == ["assistant", "user"] and said[turn].strip()
        if answers and asks_for_data(row.messages[turn - 1]["content"]):
            return "after_question"
    text = "\n".join(one for role, one in zip(roles, said, strict=True) if role != "system")
    if _DIGITS.search(text):
        return "digits"
    # A word of no other row may be a name.
    rare = any(words[word.casefold()] == 1 for word in _WORD.findall(text))
    return "names" if rare or _CAPITAL.search(text) else "other"
