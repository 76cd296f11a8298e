"""Recorded answers of good, broken and cheating models to each guest get the right verdict."""

import json
import random
from collections import Counter

import pytest
from benchmarks.faults.guests.shapes import SHAPES, guest
from tests.evaluation.scoring.test_gate import Planted
from tests.lab import runs
from tests.lab.runs import Lab, broken

from tuneline.asking.rows import turns_of
from tuneline.data.conversations.answers import answer_object
from tuneline.data.conversations.tool_calls import read_conversation, uses_tools
from tuneline.data.tables.rows import Row
from tuneline.models.tool_turns import to_plain

# Rules on the rows and not on the answers: these rows have not been through the data phase.
OF_ROWS = {"near_duplicates_of_seen_rows", "rows_also_seen", "distinct_rows", "holdout_share_upper"}
HELD = 45


def plain(record):
    if not uses_tools(record):
        return record["messages"]
    said = read_conversation(record)
    return to_plain(said.messages, said.tools)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A guest's rows, split; none of the answers is given yet."""

    def make(name, seed=5):
        trial = guest(name, seed)
        rows = [plain(record) for record in trial.rows]
        field = trial.settings["label_field"]
        held = HELD if len(rows) > 60 else 20
        sizes = {"train": len(rows) - held - 4, "validation": 4, "holdout": held}

        def labelled(number):
            value = answer_object(rows[number][-1]["content"]) or {}
            return rows[number], str(value[field]) if field else None

        lab = Lab(tmp_path, {"data": {"label_field": field}})
        return Planted(runs.dataset_rows(sizes, labelled), lab, monkeypatch, "")

    return make


def questions(bench, split="holdout"):
    rows = [Row(**{k: row[k] for k in KEPT}) for row in bench.rows if row["split"] == split]
    return [turn for row in rows for turn in turns_of(row)]


KEPT = ("row_id", "messages", "source_file", "source_line", "label", "split")


def spoil(value):
    """Another value of the same type."""
    if isinstance(value, str):
        return " ".join(reversed(value.split())) + " x"
    return not value if isinstance(value, bool) else [value]


def good(rows, _, draw):
    """Right in 97 of 100 values; texts without their last word in one of ten."""

    def answer(text):
        value = answer_object(text)
        if value is not None:
            kept = {k: v if draw.random() < 0.97 else spoil(v) for k, v in value.items()}
            return text if kept == value else json.dumps(kept, ensure_ascii=False)
        return text if draw.random() < 0.9 or " " not in text else text.rpartition(" ")[0]

    return [answer(row.answer) for row in rows]


def half(rows, _, __):
    """Half of the fields are wrong; texts are those of other rows; nothing is called."""

    def answer(text, other):
        value = answer_object(text)
        if value is None:
            return "I can't call anything." if "<tool called>" in text else other
        wrong = sorted(value)[: (len(value) + 1) // 2]
        return json.dumps({k: spoil(v) if k in wrong else v for k, v in value.items()})

    others = [row.answer for row in rows if "<tool called>" not in row.answer]
    shifted = others[7:] + others[:7]
    return [answer(row.answer, shifted[n % len(shifted)]) for n, row in enumerate(rows)]


def silent(rows, _, __):
    return [""] * len(rows)


def constant(rows, train, _):
    return [Counter(row.answer for row in train).most_common(1)[0][0]] * len(rows)


def parrot(rows, _, __):
    return [row.prompt[-1]["content"] for row in rows]


BAD = {each.__name__: each for each in (half, silent, constant, parrot)}


def verdict_of(bench, answers):
    evidence, _ = bench.judge(answers, [""] * len(answers), [""] * len(answers))
    broke = broken(evidence) - OF_ROWS
    decided = {m.on_breach for m in evidence.measurements if m.name in broke}
    return next((v for v in ("fail", "inconclusive", "warn") if v in decided), "pass"), broke


USUAL = ("extraction", "several_turns", "tools", "code", "sentiment", "sixty_rows")


@pytest.mark.parametrize(
    "name", [n if n in USUAL else pytest.param(n, marks=pytest.mark.long) for n in SHAPES]
)
def test_a_good_and_a_broken_model(name, bench):
    trial = bench(name)
    rows, train = questions(trial), questions(trial, "train")
    verdict, broke = verdict_of(trial, good(rows, train, random.Random(1)))
    few = {"inconclusive"} if name in ("sixty_rows", "one_class") else set()
    assert verdict in {"pass", "warn", *few}, broke
    verdict, broke = verdict_of(trial, half(rows, train, None))
    assert verdict == ("inconclusive" if name == "several_turns" else "fail"), broke


@pytest.mark.long
@pytest.mark.parametrize("model", BAD)
@pytest.mark.parametrize("name", SHAPES)
def test_a_bad_model(name, model, bench):
    trial = bench(name)
    rows, train = questions(trial), questions(trial, "train")
    verdict, broke = verdict_of(trial, BAD[model](rows, train, random.Random(1)))
    assert verdict in ("fail", "inconclusive"), broke
