"""Votes by file: what spreadsheets make of a sheet."""

import csv
import io

import pytest
from tests.lab.reviews import for_model, key_of, prepared
from tests.lab.runs import Lab, value, values

from tuneline.artifacts.evaluation import REVIEW_PAIRS
from tuneline.cli import main
from tuneline.errors import UserError
from tuneline.people import ballots, blind_review


@pytest.fixture
def bench(tmp_path):
    made = Lab(tmp_path, {"evaluation": {"review": True, "reviewers": ["ann", "ben"]}})
    prepared(made, released=True)
    return made


@pytest.fixture
def sheet(bench, tmp_path):
    """The exported sheet: its rows, and a way to save them changed and read them in."""
    path = tmp_path / "votes.csv"
    blind_review.export_file(bench.run, path, reviewer="ann")
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    return rows, lambda given, **how: _read_in(bench, path, given, **how)


def _read_in(bench, path, rows, *, delimiter=",", encoding="utf-8"):
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, rows[0].keys(), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(out.getvalue().encode(encoding))
    return blind_review.import_file(bench.run, path, imported_by="ops")


def vote_on(rows, choice="A", **more):
    return [{**row, "choice": choice, **more} for row in rows]


def test_the_sheet_tells_nothing_of_the_models(bench, sheet):
    rows, _ = sheet
    assert len(rows) == 20
    assert list(rows[0]) == [
        "review_id", "pair", "prompt", "A", "B", "choice", "reviewer", "comment",
    ]  # fmt: skip
    assert {row["reviewer"] for row in rows} == {"ann"}
    assert not {"tuned", "base", "released"} & {cell for row in rows for cell in row.values()}


def test_a_sheet_that_a_spreadsheet_saved_is_read(bench, sheet):
    rows, read_in = sheet
    choices = ["a", "B", "TIE", "Both bad"] + [""] * 16
    given = [{**row, "choice": c, "comment": "hm"} for row, c in zip(rows, choices, strict=True)]
    assert read_in(given, delimiter=";", encoding="utf-16") == {"ann": 4}
    (ballot,) = ballots.ballots(bench.run)
    assert [mark.choice for mark in ballot.marks] == ["A", "B", "tie", "both bad"]
    assert (ballot.source, ballot.imported_by, ballot.marks[0].comment) == ("csv", "ops", "hm")


def test_reviewers_of_one_file_stay_apart(bench, sheet):
    rows, read_in = sheet
    both = [*vote_on(rows), *vote_on(rows, "B", reviewer="ben")]
    assert read_in(both) == {"ann": 20, "ben": 20}
    evidence = bench.execute("human_review")
    assert (value(evidence, "reviewers"), value(evidence, "votes_from_files")) == (2, 40)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (
            lambda rows: [*vote_on(rows), *vote_on(rows[:1], "B")],
            r"line 82, pair: ann has voted on pair 1 on line 2 already",
        ),
        (lambda rows: vote_on(rows, reviewer="mallory"), "line 2, reviewer: mallory is not assig"),
        (lambda rows: vote_on(rows, reviewer=""), "line 2, reviewer: a vote needs the name"),
        (lambda rows: vote_on(rows, "C"), "line 2, choice: 'C' is not a choice; write A, B, tie"),
        (lambda rows: vote_on(rows, pair="x"), "line 2, pair: there is no pair 'x'; the pairs"),
        (lambda rows: vote_on(rows, review_id="r0"), "line 2, review_id: the file is for the rev"),
        (lambda rows: rows, "holds no vote; fill the column choice"),
        (
            lambda rows: [
                {**row, "A": other["A"], "choice": "A"}
                for row, other in zip(rows, rows[::-1], strict=True)
            ],
            "line 2, A: this is not the text of pair 1; the file was sorted",
        ),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_stored(bench, sheet, spoil, why):
    rows, read_in = sheet
    with pytest.raises(UserError, match=why):
        read_in(spoil(rows))
    assert ballots.ballots(bench.run) == []


def test_a_file_for_pairs_that_were_drawn_again_is_refused(bench, sheet):
    rows, read_in = sheet
    bench.execute("prepare_review")
    with pytest.raises(UserError, match="export them again and vote anew"):
        read_in(vote_on(rows))


def test_the_command_exports_imports_and_judges_again(bench, tmp_path, capsys):
    path = tmp_path / "votes.csv"
    run = ["--run", bench.run.uri]
    assert main(["review", "export", *run, "--out", str(path), "--reviewer", "ann"]) == 0
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    sides = {str(entry.pair): for_model("tuned")(entry) for entry in key_of(bench).pairs}
    voted = [
        {**row, "reviewer": name, "choice": sides[row["pair"]]}
        for row in rows
        for name in ("ann", "ben")
    ]
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, rows[0].keys())
        writer.writeheader()
        writer.writerows(voted)
    assert main(["review", "import", str(path), *run]) == 0
    printed = capsys.readouterr().out
    assert "20 votes of ann stored" in printed
    assert "human_review: pass: ann, ben preferred the tuned model on 10 of 10" in printed
    assert values(bench.run.find_evidence("human_review"))["pairs_reviewers_disagree_on"] == 0


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["export", "--out", "votes.xlsx"], "name a .csv file"),
        (["import", "nowhere.csv"], "nowhere.csv can't be read: No such file"),
    ],
)
def test_wrong_arguments_are_one_sentence(bench, capsys, arguments, why):
    assert main(["review", *arguments, "--run", bench.run.uri]) == 2
    assert why in capsys.readouterr().err


@pytest.fixture
def run(tmp_path):
    bench = Lab(tmp_path, {"evaluation": {"review": True}})
    prepared(bench)
    return bench.run


def filled(run, numbers, choices, comment=None):
    names = list(blind_review.form_fields(run, numbers))[:-1]
    return {**dict(zip(names, choices, strict=True)), "comment": comment}


def test_each_pair_has_a_field_with_four_choices_and_all_have_one_comment(run):
    fields = blind_review.form_fields(run, [1, 2])
    assert [field["title"] for field in fields.values()] == ["Pair 1", "Pair 2", "Comment"]
    first = next(iter(fields.values()))
    assert first["enum"] == [None, "A is better", "B is better", "Tie", "Both are bad"]
    with pytest.raises(UserError, match="not those that were dealt out"):
        blind_review.review_body(run, [10, 11])


def test_what_is_filled_in_is_stored_under_the_name_that_airflow_recorded(run):
    given = filled(run, [2, 4, 5], ["B is better", None, "Both are bad"], "why both?")
    assert blind_review.record_form(run, [2, 4, 5], given, "dora") == 2
    (ballot,) = ballots.ballots(run)
    assert (ballot.reviewer, ballot.source, ballot.comment) == ("dora", "airflow", "why both?")
    assert [(mark.pair, mark.choice) for mark in ballot.marks] == [(2, "B"), (5, "both bad")]


@pytest.mark.parametrize(
    ("choice", "why"),
    [(None, "no vote was given"), ("C is better", "'C is better' is not a choice")],
)
def test_a_form_without_a_vote_or_with_a_wrong_one_is_refused(run, choice, why):
    with pytest.raises(UserError, match=why):
        blind_review.record_form(run, [1], filled(run, [1], [choice]), "dora")


def test_votes_on_pairs_that_were_drawn_again_fit_no_field(run):
    given = filled(run, [1], ["Tie"])
    replace_sheet(run, review_id="r2")
    with pytest.raises(UserError, match="the form has no field pair_1_r"):
        blind_review.record_form(run, [1], given, "dora")


def replace_sheet(run, **change):
    sheet = REVIEW_PAIRS.find(run).model_copy(update=change)
    run.store.put_bytes(REVIEW_PAIRS.key(run), sheet.model_dump_json(by_alias=True).encode())


def test_an_answer_cannot_break_out_of_its_quotes(run):
    evil = "```\n<img src=x>\n# heading\n````"
    pair = REVIEW_PAIRS.find(run).pairs[0].model_copy(update={"A": evil})
    replace_sheet(run, pairs=[pair])
    assert f"`````\n{evil}\n`````" in blind_review.review_body(run, [pair.pair])
