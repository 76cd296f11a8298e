import json
import os
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tuneline.config import CsvMapping
from tuneline.data.sources.csv_files import CsvForm
from tuneline.data.sources.find_files import find_files
from tuneline.data.sources.records import (
    DuplicateKey,
    check_file,
    count_records,
    parse_json,
    read_records,
)
from tuneline.errors import UserError


def read(path, content, mapping=None, **dialect):
    path.write_bytes(content)
    return list(read_records(path, path.name, CsvForm(mapping, **dialect)))


def read_all(address):
    for file in find_files([address]):
        check_file(file.local, file.name)
        list(read_records(file.local, file.name))


def faults(records):
    return [(r.fault or "").split(":")[0] for r in records]


def test_one_bad_line_never_stops_the_rest(tmp_path):
    lines = {
        b'{"a": 1}': "",
        b'{"a": "\xff"}': "invalid_utf8",
        b'{"a": ': "broken_json",
        b"\x00\x00": "broken_json",
        b"   ": "blank_line",
        b'{"a": 1, "a": 2}': "duplicate_key",
        b"[" * 20_000: "broken_json",
        b"[" * 150 + b"]" * 150: "broken_json",
        b'{"a":' * 150 + b"1" + b"}" * 150: "broken_json",
        b'{"a": NaN}': "broken_json",
        b'{"a": -Infinity}': "broken_json",
        b'{"a": 1e999}': "broken_json",
        b'{"a": ' + b"9" * 5000 + b"}": "broken_json",
        b'{"a": 2}\r': "",
    }
    records = read(tmp_path / "rows.jsonl", b"\n".join(lines))
    assert faults(records) == list(lines.values())
    assert [r.source_line for r in records] == list(range(1, len(lines) + 1))
    assert (records[0].value, records[-1].value) == ({"a": 1}, {"a": 2})
    assert records[1].raw == '{"a": "\\xff"}'
    assert count_records(tmp_path / "rows.jsonl") == len(lines)


def test_many_brackets_are_not_many_levels():
    assert len(parse_json("[" + "[]," * 500 + "[1e308]]")) == 501
    assert parse_json("[" * 99 + "]" * 99)


def test_a_repeated_key_among_many_is_found_in_linear_time():
    line = "{" + "".join(f'"{n}":0,' for n in range(80_000)) + '"79999":1}'
    began = time.process_time()
    with pytest.raises(DuplicateKey, match="79999"):
        parse_json(line)
    assert time.process_time() - began < 10


def test_a_bad_byte_in_the_first_line_makes_no_file_binary(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\0\xff\n{"prompt": "a"}\n')
    check_file(path, "rows.jsonl")
    assert [r.fault is None for r in read_records(path, "rows.jsonl")] == [False, True]


def test_byte_order_mark_and_final_newline(tmp_path):
    records = read(tmp_path / "rows.jsonl", b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n')
    assert [r.value for r in records] == [{"a": 1}, {"a": 2}]
    assert count_records(tmp_path / "rows.jsonl") == 2


def test_csv_records_and_their_lines(tmp_path):
    content = (
        b'text,category\r\nplain,a\r\n"two\r\nlines",b\r\n"open quote,c\r\n'
        b'x,y,z\r\n"say ""hi""",d\r\n'
    )
    content += b"caf\xe9,e\r\n"
    mapping = CsvMapping(user="Q: {text}", assistant='{{"intent": {category!j}}}', label="category")
    records = read(tmp_path / "rows.csv", content, mapping)
    assert [r.source_line for r in records] == [2, 3, 5, 6, 7, 8]
    assert faults(records) == ["", "", "broken_csv", "broken_csv", "", "invalid_utf8"]
    turns = records[1].value["messages"]
    assert turns[0] == {"role": "user", "content": "Q: two\r\nlines"}
    assert json.loads(turns[1]["content"]) == {"intent": "b"}
    assert records[4].value["messages"][0]["content"] == 'Q: say "hi"'
    assert records[4].label == "d"


def test_csv_without_mapping_takes_columns_as_fields(tmp_path):
    records = read(tmp_path / "rows.csv", b"prompt,completion\nhi,ho\n")
    assert records[0].value == {"prompt": "hi", "completion": "ho"}


@pytest.mark.parametrize(
    ("assistant", "content", "words"),
    [
        ("{intent}", b"text,category\na,b\n", r"no column 'intent'.*its columns are 'text', 'cate"),
        ('{"intent": {text}}', b"text,category\na,b\n", r"data\.csv\.assistant.*write \{column\}"),
        ("{text}", b"\xff\xfe\n", "CSV header"),
        ("{text}", b'"a\n', "CSV header"),
        ("{text}", b"a,a\n1,2\n", "its own name"),
        ("{text}", b",b\n1,2\n", "its own name"),
    ],
)
def test_a_csv_that_can_not_be_read(tmp_path, assistant, content, words):
    with pytest.raises(UserError, match=words):
        read(tmp_path / "rows.csv", content, CsvMapping(user="{text}", assistant=assistant))


def test_parquet(tmp_path):
    path = tmp_path / "rows.parquet"
    rows = [{"messages": [{"role": "user", "content": "hi"}], "x": None}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    (record,) = read_records(path, "rows.parquet")
    assert record.value == {"messages": [{"role": "user", "content": "hi"}]}
    assert json.loads(record.raw) == record.value
    assert count_records(path) == 1


def test_what_is_no_dataset(tmp_path):
    def refuse(match, uri):
        with pytest.raises(UserError, match=match):
            read_all(str(uri))

    (tmp_path / "empty.jsonl").touch()
    refuse("is empty", tmp_path / "empty.jsonl")
    (tmp_path / "blank.jsonl").write_bytes(b"\n  \n")
    refuse("blank lines only", tmp_path / "blank.jsonl")
    (tmp_path / "utf16.jsonl").write_bytes('{"prompt": "a"}\n'.encode("utf-16"))
    refuse("is a binary file", tmp_path / "utf16.jsonl")
    (tmp_path / "list.json").write_bytes(b"[{}]")
    refuse(r"unknown format \.json; .*jq", tmp_path / "list.json")
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    refuse(r"unknown format \.xlsx", tmp_path / "rows.xlsx")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    refuse("can't be read as Parquet", tmp_path / "bad.parquet")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_unreadable_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{}\n")
    path.chmod(0)
    with pytest.raises(UserError, match="can't be read"):
        check_file(path, "rows.jsonl")
