"""Sheets as programs save them: one reader for all, and what it refuses, with file and line."""

import datetime
import io
import json
import zipfile

import pytest
from openpyxl import Workbook

from tuneline.errors import UserError
from tuneline.people.sheets import read_sheet, written

COLUMNS = ("id", "text", "choice")
TEXTS = ["plain; with, all\tmarks|", 'a "quoted" one', "two\nlines", "=1+1", "für İstanbul", "'s"]
ROWS = [{"id": str(n), "text": text, "choice": "yes"} for n, text in enumerate(TEXTS)]


def read(raw, **more):
    return read_sheet(raw, "x", **{"needed": ("id", "choice"), "advice": "export it", **more})


def as_csv(delimiter=",", encoding="utf-8", before=""):
    cells = [COLUMNS, *(tuple(row.values()) for row in ROWS)]
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in line] for line in cells]
    return (before + "\r\n".join(map(delimiter.join, quoted)) + "\r\n").encode(encoding)


def as_workbook(rows=None):
    book = Workbook()
    for row in rows or [list(COLUMNS), *([row["id"], row["text"], "yes"] for row in ROWS)]:
        book.active.append(row)
    for cells in book.active.iter_rows():
        for cell in cells:
            if isinstance(cell.value, str):
                cell.data_type = "s"
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


@pytest.mark.parametrize(
    "raw",
    [
        written(COLUMNS, ROWS),
        as_csv(),
        as_csv(";", "utf-8-sig"),
        as_csv("\t", "utf-16"),
        as_csv("|"),
        as_csv(";", "utf-8-sig", "sep=;\r\n"),
        "".join(json.dumps(row) + "\n\n" for row in ROWS).encode(),
        as_workbook(),
    ],
    ids="written comma semicolon tab-utf16 bar sep jsonl xlsx".split(),
)
def test_every_form_gives_the_same_rows(raw):
    assert [{name: e.text(name) for name in COLUMNS} for e in read(raw)] == ROWS


def test_no_cell_that_is_written_is_a_formula():
    lines = written(COLUMNS, [{"id": "@a", "text": "=1+1", "choice": "-"}]).decode("utf-8-sig")
    assert lines.splitlines()[1] == "'@a,'=1+1,'-"


def test_the_delimiter_is_the_one_under_which_the_columns_are_there():
    (entry,) = read(b"id;choice;text, with, many, commas\n1;yes;a,b\n")
    assert (entry.text("choice"), entry.text("text, with, many, commas")) == ("yes", "a,b")


def test_values_of_a_workbook_are_what_csv_would_hold():
    day = datetime.date(2026, 3, 4)
    (entry,) = read(as_workbook([["id", "choice", "day"], [3.0, None, day], [None] * 3]))
    assert (entry.text("id"), entry.text("choice")) == ("3", "")
    assert entry.text("day").startswith("2026-03-04")
    assert entry.where == "x, line 2"


def bomb():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("xl/worksheets/sheet1.xml", bytes(300 << 20))
    return out.getvalue()


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"id,text\n", "x, line 1: the columns choice are missing; export it"),
        (b"sep=;\nid;text\n", "x, line 2: the columns choice are missing"),
        (b"", "x, line 1: the columns id and choice are missing"),
        (b"id,choice,id\n", "x, line 1: the column id is there twice; keep one"),
        (b"id,choice\n1,yes\n2,yes,no\n", "x, line 3: more cells than columns"),
        (b'id,choice\n"1,yes\n', "x, line 2: not valid CSV"),
        (b'id,choice\n"a\nb",yes\nc,yes,no\n', "x, line 4: more cells than columns"),
        ("id,choice\nfür,yes\n".encode("cp1252"), "x is not UTF-8 text; save it as `CSV UTF-8`"),
        (b'{"id": "a"}\n[1]\n', "x, line 2: expected a JSON object"),
        (b'{"id": "a"}\n{"id": ' + b"[" * 50_000, "x, line 2: expected a JSON object"),
        (as_workbook([["id", "text"]]), "x, line 1: the columns choice are missing"),
        (b"PK\x03\x04 and no workbook", "x can't be read as a workbook"),
        (bomb(), "x unpacks to 300 MiB"),
    ],
)
def test_what_is_refused(raw, why):
    with pytest.raises(UserError) as caught:
        read(raw)
    assert why in str(caught.value)


def test_a_number_of_json_is_no_text():
    (entry,) = read(b'{"id": 7, "choice": null}')
    assert entry.text("choice") == ""
    with pytest.raises(UserError, match="x, line 1: id is a int, not text"):
        entry.text("id")
