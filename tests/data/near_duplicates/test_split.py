import json
import random
from collections import Counter, defaultdict
from itertools import chain

import pytest
from tests.lab.data_runs import answer, chat, clean_rows, text
from tests.lab.runs import value

from tuneline.config import CsvMapping, DataConfig
from tuneline.data.conversations.reading import convert
from tuneline.data.near_duplicates import deduplicate
from tuneline.data.near_duplicates.split import (
    assign,
    cluster_hash,
    draw,
    plan,
    quotas,
    tie_conversations,
    torn,
)
from tuneline.data.sources.csv_files import CsvForm
from tuneline.data.sources.records import read_records
from tuneline.data.tables.rows import Row, StandIn


def config(**settings):
    return DataConfig(source="rows.jsonl", **settings)


def rows(count, labels="aaab"):
    return [labels[n % len(labels)] for n in range(count)], [
        cluster_hash(f"text {n}") for n in range(count)
    ]


def test_shares_in_all_and_in_each_class():
    labels, hashes = rows(400)
    splits = assign(labels, hashes, plan(400, config(), own_holdout=False))
    assert Counter(splits) == {"train": 300, "holdout": 60, "validation": 40}
    assert Counter(s for s, label in zip(splits, labels, strict=True) if label == "b") == {
        "train": 75,
        "holdout": 15,
        "validation": 10,
    }
    small = [f"class {n // 3}" for n in range(400)]
    splits = assign(small, hashes, plan(400, config(), own_holdout=False))
    assert Counter(splits)["holdout"] == 60


@pytest.mark.parametrize("seed", range(20))
def test_a_tenth_more_rows_in_every_class_takes_none_from_the_holdout_to_training(seed):
    draw = random.Random(seed)
    sizes = {name: draw.randint(40, 400) for name in "abcdefgh"}
    labels = [name for name, size in sizes.items() for _ in range(size)]
    hashes = [cluster_hash(f"{seed} {n}") for n in range(len(labels))]
    before = assign(labels, hashes, plan(len(labels), config(), own_holdout=False))
    added = [name for name, size in sizes.items() for _ in range(size // 10)]
    more = labels + added
    more_hashes = hashes + [cluster_hash(f"{seed} new {n}") for n in range(len(added))]
    after = assign(more, more_hashes, plan(len(more), config(), own_holdout=False))
    moves = Counter(zip(before, after, strict=False))
    assert moves["holdout", "train"] == 0
    assert moves["train", "holdout"] == 0
    assert Counter(after)["holdout"] == round(0.15 * len(more))


def test_plans_and_quotas_add_up():
    assert plan(100, config(), own_holdout=True) == (0, 10)
    assert plan(1, config(), own_holdout=False) == (1, 0)
    assert assign([], [], plan(0, config(), own_holdout=False)) == []
    assert quotas({"a": 7, "b": 2, "c": 1}, 5) == {"a": 4, "b": 1, "c": 0}
    assert quotas({"a": 2, "b": 1}, 9) == {"a": 2, "b": 1}
    assert quotas({}, 3) == {}
    labels, hashes = rows(80)
    assert Counter(labels[i] for i in draw(labels, hashes, 20)) == {"a": 15, "b": 5}
    assert draw(labels, hashes, 500) == set(range(80))


def row(number, *users, conversation=None, **more):
    """Return a row whose prompt is a conversation with these user turns."""
    begun = [message for user in users[:-1] for message in chat(user, f"so {user}")]
    messages = [*begun, *chat(users[-1], "label")]
    return Row(f"{number:04d}", messages, "rows.jsonl", number, conversation=conversation, **more)


def named(*users):
    """Return a row that names somebody in its first turn."""
    found = row(0, *users, stand_ins=(StandIn(0, 5, 8, "PERSON"),))
    if users[1:]:
        found.messages[1]["content"] = "so"
    return found


@pytest.mark.parametrize(
    ("rows", "clusters", "groups"),
    [
        # Rows of one id, and of one cluster.
        ([row(0, "a", conversation="x"), row(1, "b"), row(2, "c", conversation="x"), row(3, "d")],
         [0, 1, 2, 1], [0, 1, 0, 1]),
        # Prompts that continue each other.
        ([row(0, "a"), row(1, "a", "b", "c"), row(2, "a", "b"), row(3, "b")],
         [0, 1, 2, 3], [0, 0, 0, 3]),
        # An opening of several conversations ties none.
        ([row(0, "hi"), row(1, "hi", "b"), row(2, "hi", "c"), row(3, "hi", "c", "d")],
         [0, 1, 2, 3], [0, 1, 2, 2]),
        # Surrogates of personal data do not hide a conversation.
        ([named("call Ann"), named("call Bob", "b")], [0, 1], [0, 0]),
    ],
)  # fmt: skip
def test_rows_of_a_conversation_belong_together(rows, clusters, groups):
    assert tie_conversations(lambda: rows, clusters) == groups


def spoken(conversations, turns, **named):
    """Return conversations written out turn by turn, and after them rows on their own."""
    rows = []
    for number in range(conversations):
        said = [text(500 + 17 * number + turn, 12) for turn in range(turns)]
        for turn in range(turns):
            begun = [m for user in said[:turn] for m in chat(user, "Go on.")]
            label = ("billing", "login", "shipping")[(number + turn) % 3]
            reply = answer(label, f"So {text(3000 + 40 * number + turn, 4)}.")
            more = {key: f"{what}{number}" for key, what in named.items()}
            if named:
                begun = []
            rows.append({"messages": [*begun, *chat(said[turn], reply)], **more})
    return rows


def sides(lab, rows_in, turns):
    """Return the splits of each conversation."""
    found = defaultdict(set)
    for kept in lab.table("deduplication", "rows.parquet"):
        if kept["source_line"] <= rows_in:
            found[(kept["source_line"] - 1) // turns].add(kept["split"])
    return found


@pytest.mark.parametrize("named", [{}, {"conversation_id": "c"}])
def test_no_conversation_is_torn_and_a_torn_one_fails_step_and_gate(data_lab, monkeypatch, named):
    rows = spoken(40, 3, **named)
    lab = data_lab(rows + clean_rows(60))
    entry = lab.upto("deduplication")
    assert value(entry, "torn_conversations") == 0
    found = sides(lab, len(rows), 3)
    assert len(found) == 40
    assert all(len(splits) == 1 for splits in found.values())
    assert {*chain(*found.values())} == {"train", "validation", "holdout"}
    # The planted fault: every row is split by itself.
    split = deduplicate.assign
    monkeypatch.setattr(
        deduplicate,
        "assign",
        lambda labels, hashes, counts: split(
            labels, [deduplicate.cluster_hash(f"{n}") for n in range(len(labels))], counts
        ),
    )
    torn = data_lab(rows + clean_rows(60))
    assert value(torn.upto("deduplication"), "torn_conversations") > 10
    assert "deduplication.torn" in torn.agree("deduplication", "fail").summary


def test_half_of_the_reviewed_rows_of_drifted_days_are_held_out_in_whole_groups(data_lab):
    reviewed = {"request_id": "r", "labeller": "ann", "decision": "accept", "served_by": "m"}
    rows = [
        row | reviewed | {"day": f"2026-03-0{1 + number // 12}"}
        for number, row in enumerate(spoken(16, 3, conversation_id="c"))
    ]
    # Twelve rows of a fourth day are of none that drifted.
    lab = data_lab(rows + clean_rows(300), drifted_days=["2026-03-01", "2026-03-03"])
    entry = lab.upto("distribution_balancing")
    held = Counter(
        r["day"] for r in lab.table(entry.item, "dataset.parquet") if r["split"] == "holdout"
    )
    assert sum(held[day] for day in ("2026-03-01", "2026-03-02", "2026-03-03")) == 18
    assert all(len(splits) == 1 for splits in sides(lab, len(rows), 3).values())
    assert value(lab.run.find_evidence("deduplication"), "holdout_share") == pytest.approx(
        0.15, abs=0.01
    )


def test_the_final_audit_finds_a_named_conversation_in_two_splits():
    named = ["x", "x", "x", None, None]
    assert torn(named, ["train", "train", "train", "holdout", "train"]) == 0
    assert torn(named, ["train", "train", "holdout", "holdout", "train"]) == 1


def keys(path, config, form=None):
    outcomes, _ = convert(read_records(path, "rows", form), "rows", config, own_holdout=False)
    return [outcome.conversation_key for outcome in outcomes]


def test_the_field_is_known_named_or_a_column(tmp_path):
    path = tmp_path / "rows.jsonl"
    records = [{"messages": chat("a", "b"), "dialogue_id": 7, "call": "x"}] * 2
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    first, second = keys(path, DataConfig(source="x"))
    assert first == second is not None
    assert keys(path, DataConfig(source="x", conversation_field="call"))[0] not in (None, first)
    assert keys(path, DataConfig(source="x", conversation_field="none")) == [None, None]
    table = tmp_path / "rows.csv"
    table.write_text("q,a,call\nhi,ho,7\nhi,ho,\n")
    mapping = CsvMapping(user="{q}", assistant="{a}", conversation="call")
    assert keys(table, DataConfig(source="x"), CsvForm(mapping)) == [first, None]
