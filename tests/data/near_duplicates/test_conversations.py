import json
from collections import defaultdict

import pytest
from tests.lab.data_runs import answer, chat, clean_rows, text
from tests.lab.runs import value

from tuneline.config import CsvMapping, DataConfig
from tuneline.data.conversations.reading import convert
from tuneline.data.final_audit import torn
from tuneline.data.near_duplicates import deduplicate
from tuneline.data.near_duplicates.split import tie_conversations
from tuneline.data.sources.csv_files import CsvForm
from tuneline.data.sources.records import read_records
from tuneline.data.tables.rows import Row, StandIn


def row(number, *users, conversation=None, **more):
    """Return a row whose prompt is a conversation with these user turns."""
    begun = [message for user in users[:-1] for message in chat(user, f"so {user}")]
    messages = [*begun, *chat(users[-1], "label")]
    return Row(f"{number:04d}", messages, "rows.jsonl", number, conversation=conversation, **more)


def groups(*rows):
    return tie_conversations(rows, range(len(rows)))


def test_rows_of_one_id_and_of_one_cluster_belong_together():
    rows = [row(0, "a", conversation="x"), row(1, "b"), row(2, "c", conversation="x"), row(3, "d")]
    assert groups(*rows) == [0, 1, 0, 3]
    assert tie_conversations(rows, [0, 1, 2, 1]) == [0, 1, 0, 1]


def test_prompts_that_continue_each_other_belong_together():
    first, third, second = row(0, "a"), row(1, "a", "b", "c"), row(2, "a", "b")
    assert groups(first, third, second, row(3, "b")) == [0, 0, 0, 3]


def test_an_opening_of_several_conversations_ties_none():
    rows = [row(0, "hi"), row(1, "hi", "b"), row(2, "hi", "c"), row(3, "hi", "c", "d")]
    assert groups(*rows) == [0, 1, 2, 2]


def test_surrogates_of_personal_data_do_not_hide_a_conversation():
    first = row(0, "call Ann", stand_ins=(StandIn(0, 5, 8, "PERSON"),))
    second = row(1, "call Bob", "b", stand_ins=(StandIn(0, 5, 8, "PERSON"),))
    second.messages[1]["content"] = "so"
    assert groups(first, second) == [0, 0]


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
    assert {split for splits in found.values() for split in splits} == {
        "train",
        "validation",
        "holdout",
    }
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
