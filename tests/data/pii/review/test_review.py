"""A person's review of scrubbed rows: its draw, its sheet, and its estimate in the evidence."""

import csv
import io
import json

import pytest
from tests.data.pii.measure.test_planting import turns
from tests.lab.detectors import PatternDetector
from tests.lab.runs import value

from tuneline.cli import main
from tuneline.data.pii.review.review import STRATA, as_csv, draw_rows, read_answers, reviewed
from tuneline.data.tables.rows import Row, StandIn
from tuneline.errors import UserError

ITEM = "pii_scrubbing"


def rows_of_all_strata():
    texts = [
        *(("hi", "what is your name?", f"word{'x' * (n % 7)} ok", "fine") for n in range(40)),
        *((f"order {n + 1000} is late", "fine") for n in range(60)),
        *(("tell Zebulon about it" + "!" * n, "fine") for n in range(50)),
        *(("where is my parcel" + "?" * n, "fine") for n in range(250)),
    ]
    return [Row(f"{n:04x}", turns(*text), "f", n) for n, text in enumerate(texts)]


def fill(raw, missed=lambda row: "none", first=0):
    rows = list(csv.DictReader(io.StringIO(raw.decode("utf-8-sig"))))[first:]
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0].keys())
    writer.writeheader()
    writer.writerows({**row, "missed": missed(row)} for row in rows)
    return out.getvalue().encode()


def test_risky_rows_are_drawn_more_often_and_weigh_less():
    rows = rows_of_all_strata()
    drawn = draw_rows(rows, 100)
    assert len(drawn) == 100
    assert {row.stratum for row in drawn} == set(STRATA)
    weights = {row.stratum: row.weight for row in drawn}
    assert weights["digits"] < weights["other"]
    assert sum(row.weight for row in drawn) == pytest.approx(len(rows))
    assert drawn == draw_rows(rows[::-1], 100), "the order of the rows does not matter"
    assert len(draw_rows(rows, 10_000)) == len(rows)


def test_surrogates_are_shown_by_their_type():
    stand_in = StandIn(0, 8, 11, "PERSON")
    row = Row("a", turns("this is Dan here", "ok"), "f", 1, stand_ins=(stand_in,))
    (drawn,) = draw_rows([row])
    assert drawn.text == "user: this is [PERSON] here\n\nassistant: ok"


def test_the_estimate_counts_rows_by_their_weight():
    rows = rows_of_all_strata()
    sheet = as_csv(draw_rows(rows, 100))
    names = fill(sheet, lambda row: "PERSON: Zebulon" if "Zebulon" in row["text"] else "none")
    review = reviewed(read_answers(names, "sheet.csv"), rows)
    assert review.left().value == pytest.approx(50)
    assert review.left().lower < 50 < review.left().upper
    assert review.left_per_1000("PERSON", 200).value == pytest.approx(250)
    clean = reviewed(read_answers(fill(sheet), "sheet.csv"), rows)
    assert clean.left().value == 0
    assert clean.left().upper > 0
    assert clean.entities() == []


def test_a_review_of_other_data_does_not_count():
    rows = rows_of_all_strata()
    answers = read_answers(fill(as_csv(draw_rows(rows, 50))), "sheet.csv")
    changed = [Row(r.row_id, turns("changed", "ok"), "f", 1) for r in rows]
    assert reviewed(answers, changed).foreign == 50
    assert reviewed(answers, changed).weights == []
    assert reviewed(answers[1:], rows).foreign > 0, "rows can't be left out"


@pytest.mark.parametrize(
    ("missed", "words"),
    [
        ("", "line 2: the column missed is empty; write none, or"),
        ("Zebulon", "'Zebulon' is not TYPE: text"),
        ("NAME: Zebulon", "no type is called NAME; there are PERSON"),
        ("PERSON: Melchior", "'Melchior' is not in row"),
    ],
)
def test_a_sheet_that_is_not_well_filled_is_refused(missed, words):
    rows = rows_of_all_strata()
    sheet = fill(as_csv(draw_rows(rows, 20)), lambda _: missed)
    with pytest.raises(UserError, match=words):
        reviewed(read_answers(sheet, "sheet.csv"), rows)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"a,b\n1,2\n", "columns row_id and row_hash and missed are missing"),
        (b"row_id,row_hash,missed\n", "holds no rows"),
        (b"row_id,row_hash,missed\na,b,none\na,b,none\n", "row a is there twice"),
    ],
)
def test_another_file_is_refused(raw, words):
    with pytest.raises(UserError, match=words):
        read_answers(raw, "sheet.csv")


@pytest.fixture
def lab_of(data_lab, monkeypatch):
    """Makes a run whose detector takes numbers alone, and misses the names that are in all rows."""
    import re

    detector = PatternDetector(re.compile(r"\d{5,}"), entity="PHONE_NUMBER")
    monkeypatch.setattr("tuneline.data.pii_scrubbing.make_scrubber", lambda *_: detector)
    monkeypatch.setattr("tuneline.data.pii_scrubbing.describe_models", lambda _: {})
    rows = [
        {"messages": turns(f"call Zebulon on {n + 55500000} now", f"ok then number {n}")}
        for n in range(60)
    ]
    return lambda **settings: data_lab(rows, pii_ner=True, pii_profile=["gdpr"], **settings)


def test_what_a_person_finds_goes_into_the_evidence_and_turns_the_verdict(lab_of, tmp_path, capsys):
    first = lab_of()
    assert first.upto(ITEM).verdict == "pass", "limits of the canaries are off here"
    sheet, filled = tmp_path / "sheet.csv", tmp_path / "filled.csv"
    assert main(["data", "review-pii", first.run.uri, "--out", str(sheet), "--rows", "30"]) == 0
    filled.write_bytes(fill(sheet.read_bytes(), lambda _: "PERSON: Zebulon"))
    capsys.readouterr()
    call = ["data", "review-pii", first.run.uri, "--labels", str(filled), "--json"]
    assert main(call) == 0
    told = {entry["name"]: entry["value"] for entry in json.loads(capsys.readouterr().out)}
    assert told["review_left_per_1000_rows"] == pytest.approx(1000)

    second = lab_of(pii_review=str(filled), pii_max_left=10)
    entry = second.upto(ITEM)
    assert value(entry, "review_rows") == 30
    assert value(entry, "review_left_per_1000_rows_PERSON") == pytest.approx(1000)
    assert value(entry, "leak_estimate_rests_on") == "canaries and a person's review of 30 rows"
    assert "A person found 30 more in 30 of the rows" in entry.summary
    gate = second.gate(ITEM)
    assert (entry.verdict, gate.verdict, gate.agrees) == ("fail", "fail", True)
    assert "pii_review" in gate.summary


def test_a_review_that_finds_nothing_passes_and_one_of_other_data_warns(lab_of, tmp_path):
    first = lab_of()
    first.upto(ITEM)
    sheet, filled = tmp_path / "sheet.csv", tmp_path / "filled.csv"
    assert main(["data", "review-pii", first.run.uri, "--out", str(sheet), "--rows", "30"]) == 0
    filled.write_bytes(fill(sheet.read_bytes()))
    second = lab_of(pii_review=filled.as_uri())
    assert value(second.upto(ITEM), "review_left_per_1000_rows") == 0
    second.agree(ITEM, "pass")
    filled.write_bytes(fill(sheet.read_bytes(), first=1))
    third = lab_of(pii_review=str(filled))
    entry = third.upto(ITEM)
    assert value(entry, "review_rows") == 0
    assert "The review is of other data" in entry.summary
    third.agree(ITEM, "warn")


def test_wrong_calls_are_the_users_error(lab_of, tmp_path, capsys):
    run = lab_of()
    assert main(["data", "review-pii", run.run.uri, "--out", str(tmp_path / "a.csv")]) == 2
    assert "has not been run" in capsys.readouterr().err
    run.upto(ITEM)
    assert main(["data", "review-pii", run.run.uri, "--out", str(tmp_path / "a.xlsx")]) == 2
    assert "name a .csv file" in capsys.readouterr().err
    for rows in ("other.parquet", "rows.parquet"):
        (tmp_path / ITEM).mkdir(exist_ok=True)
        (tmp_path / ITEM / rows).touch()
        assert main(["data", "review-pii", str(tmp_path), "--out", str(tmp_path / "a.csv")]) == 2
        assert "neither a run nor a folder" in capsys.readouterr().err
    missing = lab_of(pii_review=str(tmp_path / "none.csv"))
    with pytest.raises(UserError, match=r"none\.csv can't be read"):
        missing.upto(ITEM)
