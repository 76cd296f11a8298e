"""Propose a better setting where many rows contradict each other.

Rows contradict if they ask the same and have different answers (or classes). Where one answer has
nearly all rows of a prompt, the others are errors of labelling and `keep_majority` saves the
prompt. Where the answers are spread, the prompt does not decide: a single turn of a conversation
often means something only after the turns before it. Where the answers are texts and not classes,
several may be right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from tuneline.data.near_duplicates.search import find_conflicts, meaning
from tuneline.data.removal.levels import CONFLICT_SHARE
from tuneline.data.tables.rows import Row

# Share of the rows of a prompt from which one answer dominates the others.
DOMINANT = 2 / 3


def advise(rows: Sequence[Row], reasons: Sequence[str | None], policy: str) -> str:
    """Return a sentence on what to set, empty if few rows left as contradictions.

    Args:
        rows: every row that came in.
        reasons: why each row leaves, None for a row that stays.
        policy: the setting `data.label_conflicts`.
    """
    contradicts = [(reason or "").startswith("label_conflict") for reason in reasons]
    gone = sum(contradicts)
    if not gone or gone < CONFLICT_SHARE * len(rows):
        return ""
    groups = [group for group in find_conflicts(rows) if any(contradicts[i] for i in group)]
    dominated = [group for group in groups if _dominates(rows, group)]
    spread = [group for group in groups if not _dominates(rows, group)]
    said = [f"{gone} rows contradict others, on {len(groups)} prompts."]
    if dominated and policy == "reject_all":
        said.append(
            f"Set data.label_conflicts to keep_majority: on {len(dominated)} of these prompts one "
            "answer has at least two thirds of the rows, and a row with it would stay."
        )
    if spread:
        said.append(_on_spread(rows, spread))
    return " ".join(said)


def _dominates(rows: Sequence[Row], group: Sequence[int]) -> bool:
    counts = Counter(meaning(rows[index]) for index in group)
    return counts.most_common(1)[0][1] >= DOMINANT * len(group)


def _on_spread(rows: Sequence[Row], groups: Sequence[Sequence[int]]) -> str:
    """Say what to do about prompts whose answers are spread."""
    prompts = [[m for m in rows[group[0]].prompt if m["role"] != "system"] for group in groups]
    where = f"On {len(groups)} prompts no answer has two thirds of the rows"
    single = [turns[0]["content"] for turns in prompts if len(turns) == 1]
    if 2 * len(single) >= len(prompts):
        words = median(len(text.split()) for text in single)
        return (
            f"{where}; {len(single)} of them are a single turn (its median length is "
            f"{words:g} words), which alone does not decide: put the turns before it into "
            "data.source, as messages or by a column that data.csv.user names."
        )
    if all(rows[index].label is None for group in groups for index in group):
        return (
            f"{where}, and answers are texts, not classes: set data.label_conflicts to keep if "
            "several answers are right."
        )
    return f"{where}: have their classes reviewed, they are listed in quarantine."
