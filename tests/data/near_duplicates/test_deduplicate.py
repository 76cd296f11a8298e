from tests.lab.data_runs import chat

from tuneline.config import DataConfig
from tuneline.data.near_duplicates.deduplicate import advise, deduplicate
from tuneline.data.tables.rows import Row

CONFIG = DataConfig(source="rows.jsonl")


def turns(*users, reply):
    """Return a conversation that ends in a reply."""
    begun = [message for user in users[:-1] for message in chat(user, "go on")]
    return [*begun, *chat(users[-1], reply)]


def rows_of(*exchanges):
    """Return rows of (turns of the prompt, class, answer)."""
    return [
        Row(f"{n:04d}", turns(*prompt, reply=reply), "rows.jsonl", n, label=label)
        for n, (prompt, label, reply) in enumerate(exchanges)
    ]


def advice(rows, config=CONFIG):
    return advise(rows, deduplicate(rows, config).reasons, config.label_conflicts)


def test_no_advice_without_many_contradictions():
    rows = rows_of(*[([f"question {n} of many others"], "a", "x") for n in range(60)])
    assert advice(rows) == ""
    pair = rows_of((["the same"], "a", "x"), (["the same"], "b", "x"))
    assert advice(rows + pair) == ""


def test_a_dominant_class_asks_for_keep_majority():
    rows = rows_of(*[(["the same question"], "a", "x")] * 9, (["the same question"], "b", "x"))
    said = advice(rows)
    assert "Set data.label_conflicts to keep_majority: on 1 of these prompts" in said
    assert "no answer has two thirds" not in said
    kept = DataConfig(source="rows.jsonl", label_conflicts="keep_majority")
    assert "keep_majority" not in advice(rows, kept)
    assert deduplicate(rows, kept).reasons.count(None) == 1
    assert deduplicate(rows, CONFIG).reasons.count(None) == 0


def test_an_ambiguous_turn_asks_for_the_conversation():
    rows = rows_of(*[(["yes please"], label, "x") for label in "abcd"])
    said = advice(rows)
    assert "1 of them are a single turn (its median length is 2 words)" in said
    assert "put the turns before it" in said
    assert "keep_majority" not in said


def test_several_right_texts_ask_for_keep():
    rows = rows_of(*[(["tell me", "another one"], None, f"story {n}") for n in range(4)])
    assert "set data.label_conflicts to keep" in advice(rows)


def test_spread_classes_of_whole_conversations_ask_for_a_review():
    rows = rows_of(*[(["tell me", "another one"], label, "x") for label in "abcd"])
    assert "have their classes reviewed" in advice(rows)
