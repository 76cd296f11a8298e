"""People read scrubbed rows in Airflow's form; what they find counts as a filled sheet does."""

import pytest
from tests.data.pii.review.test_review import rows_of_all_strata
from tests.lab.runs import Lab

from tuneline.artifacts.answers import PII_SHEET, findings_of
from tuneline.data.pii.review import review as reviews
from tuneline.errors import UserError
from tuneline.evidence import measure
from tuneline.verdicts import status

KEPT = [measure("rows_kept", 400, "rows", ">=", 1), measure("found_PERSON", 50, "hits")]


@pytest.fixture
def lab(tmp_path):
    """A run whose rows were scrubbed and drawn; 50 of 400 rows still name Zebulon."""
    made = Lab(tmp_path, {"data": {"pii_review": reviews.ASK, "pii_profile": ["hipaa"]}})
    sheet = reviews.make_sheet(rows_of_all_strata(), 40)
    made.leave("pii_scrubbing", {"review_sheet.json": sheet.model_dump_json()}, KEPT)
    return made


def filled(run, numbers, find=True):
    sheet = PII_SHEET.find(run)
    names = [name for name in reviews.form_fields(run, numbers) if name != reviews.READ_ALL]
    texts = [sheet.rows[number - 1].text for number in numbers]
    cells = ["PERSON: Zebulon" if find and "Zebulon" in text else None for text in texts]
    return {**dict(zip(names, cells, strict=True)), reviews.READ_ALL: True}


def answer_all(run, find=True, forms=None):
    for numbers in reviews.open_forms(run)[:forms]:
        reviews.record_form(run, numbers, filled(run, numbers, find), "ann")


def audited(lab):
    return {m.name: m for m in reviews.asked_review(lab.context("final_audit"))}


def test_ten_rows_are_a_form_until_somebody_has_answered_it(lab):
    forms = reviews.open_forms(lab.run)
    assert [len(form) for form in forms] == [10, 10, 10, 10]
    body = reviews.form_body(lab.run, [1, 2])
    assert ("### Row 1" in body, "### Row 3" in body) == (True, False)
    sheet = PII_SHEET.find(lab.run)
    assert f"```\n{sheet.rows[0].text}\n```" in body
    reviews.record_form(lab.run, forms[1], filled(lab.run, forms[1]), "ann")
    assert reviews.open_forms(lab.run) == [forms[0], *forms[2:]]
    answer_all(lab.run)
    assert reviews.open_forms(lab.run) == []
    assert {found.reviewer for found in findings_of(lab.run, sheet.draw_id)} == {"ann"}


@pytest.mark.parametrize("review", [None, "sheet.csv"])
def test_nobody_is_asked_unless_the_run_says_so(tmp_path, review):
    made = Lab(tmp_path, {"data": {"pii_review": review}})
    sheet = reviews.make_sheet(rows_of_all_strata(), 40)
    made.leave("pii_scrubbing", {"review_sheet.json": sheet.model_dump_json()}, KEPT)
    assert reviews.open_forms(made.run) == []
    assert reviews.asked_review(made.context("final_audit")) == []


def test_the_estimate_is_the_one_of_a_filled_sheet(lab):
    answer_all(lab.run)
    sheet = PII_SHEET.find(lab.run)
    rows = []
    for row in sheet.rows:
        missed = (("PERSON", "Zebulon"),) if "Zebulon" in row.text else ()
        rows.append(reviews.Answer("x", row.row_id, row.row_hash, missed))
    config = lab.run.config.data
    by_sheet = reviews.review_measurements(
        reviews.reviewed(rows, rows_of_all_strata()), 400, config
    )
    by_form = reviews.review_measurements(reviews.answered(lab.run, sheet), 400, config)
    assert by_form == by_sheet
    assert any(m.name == "review_left_per_1000_rows_PERSON_at_least" for m in by_form)


def test_a_leak_that_people_find_turns_the_verdict(lab):
    assert status(lab.run, "pii_scrubbing").verdict == "pass"
    lab.leave("final_audit", {}, list(audited(lab).values()))
    row = status(lab.run, "pii_scrubbing")
    assert row.verdict == "warn"
    assert "review_rows_read is 0, must be >= 40" in row.because
    answer_all(lab.run)
    lab.leave("final_audit", {}, list(audited(lab).values()))
    row = status(lab.run, "pii_scrubbing")
    assert row.verdict == "fail"
    assert (
        "the final audit: pii_scrubbing.review_left_per_1000_rows_PERSON_at_least is" in row.because
    )
    # Findings in other rows do not count.
    other = reviews.make_sheet(rows_of_all_strata()[:300], 40)
    lab.leave("pii_scrubbing", {"review_sheet.json": other.model_dump_json()}, KEPT)
    assert reviews.answered(lab.run, other).weights == []
    assert len(reviews.open_forms(lab.run)) == 4


def test_rows_in_which_nothing_is_found_leave_the_verdict(lab):
    answer_all(lab.run, find=False)
    found = audited(lab)
    assert found["pii_scrubbing.review_rows_read"].ok
    assert "a person's review of 40 rows" in found["pii_scrubbing.leak_estimate_rests_on"].value
    lab.leave("final_audit", {}, list(found.values()))
    assert status(lab.run, "pii_scrubbing").verdict == "pass"


def test_a_review_that_lacks_a_form_stands_for_all_rows_or_says_nothing(lab):
    answer_all(lab.run, forms=3)
    sheet = PII_SHEET.find(lab.run)
    review = reviews.answered(lab.run, sheet)
    seen = {row.stratum for row in sheet.rows[:30]}
    if seen == {row.stratum for row in sheet.rows}:
        assert sum(review.weights) == pytest.approx(400)
    else:
        assert review.weights == []
    assert audited(lab)["pii_scrubbing.review_rows_read"].ok is False


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({reviews.READ_ALL: False}, "tick that every row was read"),
        ({"row_1_of_another": "none"}, "the form has no field row_1_of_another"),
        ({"row 1": "PERSON: Nobody"}, "'Nobody' is not in row 1"),
        ({"row 1": "NAME: x"}, "row 1: no type is called NAME"),
        ({"row 1": "Zebulon"}, "is not TYPE: text"),
    ],
)
def test_an_answer_that_can_not_count_is_refused(lab, change, sentence):
    draw_id = PII_SHEET.find(lab.run).draw_id
    change = {name.replace("row 1", f"row_1_{draw_id}"): v for name, v in change.items()}
    with pytest.raises(UserError) as refused:
        reviews.record_form(lab.run, [1, 2], {**filled(lab.run, [1, 2]), **change}, "ann")
    assert sentence in str(refused.value)
    assert len(reviews.open_forms(lab.run)) == 4
