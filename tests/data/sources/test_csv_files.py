import csv
import io

import pytest

from tuneline.config import CsvMapping, DataConfig
from tuneline.data.sources.csv_files import DELIMITERS, HEAD_BYTES, CsvForm, Dialect, find_dialect
from tuneline.data.sources.records import open_files, read_records
from tuneline.errors import UserError

MAPPING = CsvMapping(user="{text}", assistant="{intent}", label="intent")
# Texts with every delimiter, quotes of both kinds, a line end, none of them at a place of its own.
TEXTS = [
    "where is my parcel, please; it's late",
    'the sign says "closed | do not enter"',
    "two lines,\nin one value",
    'a 5" nail and\ta tab',
    "it's Tom's, isn't it",
    "plain words only",
    "back\\slash",
]


def write(path, rows, encoding="utf-8", **form):
    """Write a real file by the csv module, as an export would."""
    target = io.StringIO(newline="")
    csv.writer(target, **form).writerows([("text", "intent"), *rows])
    path.write_bytes(target.getvalue().encode(encoding))
    return path


def read(path, **settings):
    return list(read_records(path, path.name, CsvForm(MAPPING, **settings)))


def read_opened(config, tmp_path):
    return [r for file in open_files(config, tmp_path / "scratch") for r in file.records()]


def users(records):
    return [record.value["messages"][0]["content"] for record in records]


@pytest.mark.parametrize("name", DELIMITERS)
@pytest.mark.parametrize(
    ("quoting", "form"),
    [
        ("double", {}),
        ("double", {"quoting": csv.QUOTE_ALL}),
        ("double", {"lineterminator": "\n"}),
        ("backslash", {"doublequote": False, "escapechar": "\\"}),
        ("backslash", {"doublequote": False, "escapechar": "\\", "quoting": csv.QUOTE_ALL}),
        ("single", {"quotechar": "'"}),
        ("single", {"quotechar": "'", "quoting": csv.QUOTE_ALL}),
    ],
)
def test_every_dialect_is_found_and_gives_the_same_texts(tmp_path, name, quoting, form):
    rows = [(text, f"class{n}") for n, text in enumerate(TEXTS)]
    path = write(tmp_path / "rows.csv", rows, delimiter=DELIMITERS[name], **form)
    records = read(path)
    assert [record.fault for record in records] == [None] * len(rows)
    assert users(records) == TEXTS
    assert [record.label for record in records] == [label for _, label in rows]
    assert str(CsvForm(MAPPING).dialect_of(path)) == f"{name}, {quoting}"
    assert users(read(path, delimiter=name, quoting=quoting)) == TEXTS


def test_quotes_are_text_in_a_tsv_without_quoting(tmp_path):
    texts = ['"hi" he said', 'a 5" nail, please', '"', 'she said "no"', "it's fine", '"open']
    lines = ["text\tintent", *(f"{text}\tgreet" for text in texts)]
    path = tmp_path / "rows.tsv"
    path.write_text("\n".join(lines) + "\n")
    assert users(read(path)) == texts
    assert str(CsvForm().dialect_of(path)) == "tab, none"


def test_backslashes_of_json_in_a_tsv_are_text(tmp_path):
    texts = [f'{{"said": "the \\"{n}\\" one"}}' for n in range(9)]
    path = tmp_path / "rows.tsv"
    path.write_text("\n".join(["text\tintent", *(f"{text}\tx" for text in texts)]))
    assert users(read(path)) == texts


def test_few_broken_lines_do_not_make_quotes_text(tmp_path):
    rows = [f'"row {n}, said",a' for n in range(50)]
    rows[20] = '"never closed,a'
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["text,intent", *rows]) + "\n")
    records = read(path)
    assert users(r for r in records if r.fault is None)[0] == "row 0, said"
    assert [(r.source_line, r.fault.split(":")[0]) for r in records if r.fault] == [
        (22, "broken_csv")
    ]


@pytest.mark.parametrize("name", DELIMITERS)
def test_a_ragged_line_is_a_reject_with_its_line_and_the_next_row_is_not_shifted(tmp_path, name):
    mark = DELIMITERS[name]
    lines = ["text,intent", "one,a", "two", "three,b", "four,c,d,e", '"five\n5",e', "six,f"]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(lines).replace(",", mark))
    records = read(path)
    assert [(r.source_line, r.label) for r in records] == [
        (2, "a"),
        (3, None),
        (4, "b"),
        (5, None),
        (6, "e"),
        (8, "f"),
    ]
    few, many = (r.fault for r in records if r.fault)
    assert few.startswith("broken_csv: 1 fields under 2 columns, 1 too few")
    assert many.startswith("broken_csv: 4 fields under 2 columns, 2 too many")
    assert repr(mark) in many


def test_text_with_more_commas_than_tabs_is_still_a_tsv(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text\tintent\n" + "yes, no, maybe, so\tx\n" * 30)
    assert users(read(path)) == ["yes, no, maybe, so"] * 30


def test_the_columns_of_the_mapping_decide_between_delimiters(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("id,a;text;intent\n1,2;hello;x\n3,4;bye;y\n")
    assert users(read(path)) == ["hello", "bye"]
    assert str(CsvForm().dialect_of(path)).startswith("comma")


def test_a_wrong_setting_is_named_in_the_error(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text;intent\nhello;x\n")
    with pytest.raises(UserError, match=r"read with comma, double \(data\.csv_delimiter"):
        read(path, delimiter="comma")


def test_a_tsv_of_a_folder_is_read_and_a_head_cut_in_a_record_does_no_harm(tmp_path):
    rows = [(f"value {n}, with\nlines " + "x" * 900, "a") for n in range(2 * HEAD_BYTES // 900)]
    write(tmp_path / "rows.tsv", rows, delimiter="\t")
    config = DataConfig(source=str(tmp_path), csv=MAPPING)
    records = read_opened(config, tmp_path)
    assert len(records) == len(rows)
    assert not any(record.fault for record in records)


def test_settings_reach_the_reader_and_the_dataset_says_how_a_file_was_read(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('text|intent\n"a"|x\n')
    named = {"csv_delimiter": "pipe", "csv_quoting": "none"}
    for settings, text, dialect in ((named, '"a"', "pipe, none"), ({}, "a", "pipe, double")):
        config = DataConfig(source=str(path), csv=MAPPING, **settings)
        for opened in open_files(config, tmp_path / "scratch"):
            assert users(opened.records()) == [text]
            assert opened.note("", 0, "messages").dialect == dialect


def test_nothing_to_decide_on():
    assert find_dialect(b"") == Dialect()
    assert find_dialect(b"text\nhello\n", tab_first=True) == Dialect("tab", "double")
