import json

import pytest
from benchmarks.workloads.input_rows import read_conversations, read_texts

from tuneline.errors import UserError

TURNS = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "There."}]


def jsonl(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def test_texts_come_from_conversations_and_from_text_fields(tmp_path):
    values = [{"messages": TURNS}, {"text": "a"}, {"full_text": "b"}, {"other": "c"}, {"text": " "}]
    path = jsonl(tmp_path / "rows.jsonl", values)
    assert read_texts(path, None) == ["Where is it?", "a", "b"]
    assert read_texts(path, 2) == ["Where is it?", "a"]


def test_csv_and_json_lists_are_read_too(tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text("text,category\nhello,1\nbye,2\n")
    assert read_texts(table, None) == ["hello", "bye"]
    listing = tmp_path / "rows.json"
    listing.write_text(json.dumps([{"full_text": "x"}]))
    assert read_texts(listing, None) == ["x"]


def test_a_broken_line_does_not_stop_the_rest(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\nnot json\n{"text": "b"}\n')
    assert read_texts(path, None) == ["a", "b"]


def test_conversations_end_with_an_answer(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", [{"messages": TURNS}, {"messages": TURNS[:1]}])
    assert read_conversations(path, None) == [TURNS]


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("rows.jsonl", '{"a": 1}\n', read_texts),
        ("rows.jsonl", '{"text": "no conversation"}\n', read_conversations),
        ("rows.json", "{", read_texts),
        ("rows.json", "{}", read_texts),
        ("rows.txt", "text", read_texts),
    ],
)
def test_a_file_without_rows_is_refused_by_name(tmp_path, name, content, read):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=name):
        read(path, None)
