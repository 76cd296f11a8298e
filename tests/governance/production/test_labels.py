"""People's labels: what is refused and where, what is stored, and which of them count."""

import csv
import json

import pytest
from tests.lab.data_runs import text
from tests.lab.logged import MODEL, logged

from tuneline.cli import main
from tuneline.errors import UserError
from tuneline.governance.production.labels import (
    Decision,
    label_form,
    open_rows,
    put_answers,
    read_labels,
    review_rows,
    store_labels,
    take_answers,
)
from tuneline.governance.production.reviewed import review_status, reviewed_rows
from tuneline.store import sha256_file

pytestmark = pytest.mark.usefixtures("ungated")

IDS = [f"req-04-{n:06d}" for n in range(6)]


@pytest.fixture
def reviewed_store(store, curated):
    """A store with six rows in review; one prompt looks like a formula."""
    rows = [logged(n, text(n)) for n in range(5)]
    curated(store, [*rows, logged(5, '=HYPERLINK("http://x", "first line\nsecond")')])
    return store


def lines(*labels):
    """JSON lines of (id number, decision, corrected answer)."""
    return "".join(
        json.dumps({"request_id": IDS[n], "decision": decision, "answer_corrected": corrected})
        + "\n"
        for n, decision, corrected in labels
    ).encode()


def drop(store, name, raw):
    """Put a file beside the stored labels by hand."""
    path = store.root / "labels" / MODEL / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)


def test_from_csv_to_a_dataset(reviewed_store, tmp_path, capsys):
    base = ["--store", reviewed_store.uri, "--model", MODEL]
    sheet, out = tmp_path / "review.csv", tmp_path / "reviewed.jsonl"
    assert main(["logs", "review", *base, "--out", str(sheet)]) == 0
    with sheet.open(encoding="utf-8-sig", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == ("request_id prompt answer stratum decision answer_corrected".split())
    assert [row["request_id"] for row in rows] == IDS
    assert rows[5]["prompt"].startswith("'=HYPERLINK")
    rows[0]["decision"] = "accept"
    rows[1] |= {"decision": "Correct", "answer_corrected": "It left,\n=today."}
    rows[5]["decision"] = "reject"
    with sheet.open("w", encoding="utf-16", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0], delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    assert main(["logs", "label", *base, str(sheet), "--by", "ann"]) == 0
    assert main(["logs", "reviewed", *base, "--out", str(out), "--json"]) == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["messages"][-1]["content"] for row in found] == [
        "It is on its way.",
        "It left,\n=today.",
    ]
    assert found[0]["messages"][0] == {"role": "user", "content": text(0)}
    assert {(row["labeller"], row["day"]) for row in found} == {("ann", "2026-03-04")}
    capsys.readouterr()
    assert main(["logs", "review", *base]) == 0
    waiting = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["request_id"] for row in waiting] == IDS[2:5]
    # A prompt that looks like a formula is itself in the dataset, not what a spreadsheet gets.
    assert reviewed_rows(reviewed_store, MODEL).rejected == 1


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (lines((0, "accept", "")) + b'{"request_id": "nope", "decision": "accept"}\n',
         "x, line 2: request 'nope' is not in review"),
        (lines((0, "maybe", "")), "x, line 1: 'maybe' is not a decision; write accept, reject or"),
        (lines((0, "correct", " ")), "x, line 1: `correct` needs the corrected answer"),
        (lines((0, "accept", "Yes")), "x, line 1: answer_corrected is filled, but"),
        (lines((0, "accept", ""), (0, "reject", "")), "x, line 2: request req-04-000000 is lab"),
        (b'\n{"request_id": 7, "decision": "accept"}', "x, line 2: request_id is a int"),
        (b"request_id;choice\n", "x, line 1: the columns decision are missing"),
        (b'request_id,decision,prompt\nreq-04-000000,,"a\nb"\nreq-04-000001,yes,\n',
         "x, line 4: 'yes' is not a decision"),
        (lines((0, "", "")), "x holds no label"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_whole_with_file_and_line(reviewed_store, raw, message):
    with pytest.raises(UserError) as caught:
        store_labels(reviewed_store, MODEL, raw, "x", "ann")
    assert message in str(caught.value)
    assert list(reviewed_store.keys("labels")) == []
    # The same validation reads a dropped file, which stops nothing.
    store_labels(reviewed_store, MODEL, lines((3, "accept", "")), "good", "ann")
    drop(reviewed_store, "x", raw)
    labels = read_labels(reviewed_store, MODEL)
    assert list(labels.latest) == [IDS[3]]
    (skipped,) = labels.skipped
    assert "labels/support/x" in skipped
    assert message.removeprefix("x") in skipped


def test_a_missing_file_and_an_empty_name_are_said(reviewed_store, tmp_path, capsys):
    argv = ["logs", "label", "--store", reviewed_store.uri, "--model", MODEL]
    assert main([*argv, str(tmp_path / "no.csv"), "--by", "ann"]) == 2
    assert "no.csv can't be read" in capsys.readouterr().err
    good = tmp_path / "good.jsonl"
    good.write_bytes(lines((0, "accept", "")))
    assert main([*argv, str(good), "--by", " "]) == 2
    assert "--by is empty" in capsys.readouterr().err
    review = ["logs", "review", "--store", reviewed_store.uri, "--model", MODEL]
    assert main([*review, "--days", "2026-03-05..2026-03-04"]) == 2
    assert main([*review, "--out", str(tmp_path / "x.xlsx")]) == 2
    assert main([*review, "--days", "2026-03-01..2026-03-03"]) == 0
    assert capsys.readouterr().out == ""


def test_of_labels_that_disagree_the_latest_counts(any_store, curated):
    curated(any_store, [logged(n, text(n)) for n in range(6)])
    store_labels(any_store, MODEL, lines((0, "accept", ""), (1, "accept", "")), "a", "ann")
    one = reviewed_rows(any_store, MODEL)
    store_labels(any_store, MODEL, lines((0, "reject", ""), (1, "accept", "")), "b", "bob")
    two = reviewed_rows(any_store, MODEL)
    assert [row.request_id for row in one.rows] == IDS[:2]
    assert [(row.request_id, row.labeller) for row in two.rows] == [(IDS[1], "bob")]
    assert (one.conflicts, two.conflicts, two.rejected) == (0, 1, 1)
    assert one.version != two.version
    store_labels(any_store, MODEL, lines((0, "accept", "")), "c", "ann")
    # The set is the first one again, whoever stands for its rows.
    assert reviewed_rows(any_store, MODEL).version == one.version
    status = review_status(any_store, MODEL)
    assert (status.in_review, status.labelled, status.conflicts) == (4, 2, 1)


def test_a_dropped_file_counts_by_its_own_name_and_time(reviewed_store):
    store_labels(reviewed_store, MODEL, lines((0, "accept", "")), "a", "ann")
    drop(reviewed_store, "team.csv", b"request_id,decision\n" + f"{IDS[0]},reject\n".encode())
    # Without a time it is earlier than what was stored.
    assert read_labels(reviewed_store, MODEL).latest[IDS[0]].decision == Decision.ACCEPT
    drop(
        reviewed_store,
        "late.csv",
        b"request_id,decision,by,at\n"
        + f"{IDS[0]},reject,eve,2099-01-01T00:00:00+01:00\n".encode(),
    )
    label = read_labels(reviewed_store, MODEL).latest[IDS[0]]
    assert (label.decision, label.by, label.at) == (
        Decision.REJECT, "eve", "2098-12-31T23:00:00.000Z")  # fmt: skip


def test_a_stored_file_that_was_changed_is_left_out(reviewed_store):
    store_labels(reviewed_store, MODEL, lines((0, "accept", "")), "a", "ann")
    (key,) = reviewed_store.keys("labels")
    path = reviewed_store.root / key
    path.write_bytes(path.read_bytes().replace(b"accept", b"reject"))
    labels = read_labels(reviewed_store, MODEL)
    assert labels.latest == {}
    assert "is not what its name says" in labels.skipped[0]
    path.write_bytes(path.read_bytes().replace(b'"at": "', b'"at": 5, "time": "'))
    path.rename(path.with_name(f"{sha256_file(path)}.jsonl"))
    labels = read_labels(reviewed_store, MODEL)
    assert labels.latest == {}
    assert "not as it was written" in labels.skipped[0]


def test_corrected_answers_are_scrubbed_and_keep_the_surrogates(store, curated):
    prompt = "My name is Margaret Thornbury. Where is my parcel?"
    curated(store, [logged(0, prompt), logged(1, text(1))], config=None)
    rows = list(review_rows(store, MODEL))
    assert "Thornbury" not in rows[0].prompt
    name = rows[0].prompt.removeprefix("My name is ").split(".")[0]
    corrected = f"Dear {name}, my colleague Ottilie Brandywine says it left."
    answers = lines((0, "correct", corrected), (1, "reject", ""))
    assert store_labels(store, MODEL, answers, "x", "ann") == 2
    (row,) = reviewed_rows(store, MODEL).rows
    assert row.messages[-1]["content"].startswith(f"Dear {name}, my colleague ")
    assert all(b"Brandywine" not in store.get_bytes(key) for key in store.keys("labels"))


def test_a_filled_form_waits_until_it_is_scrubbed(any_store, curated):
    curated(any_store, [logged(n, text(n)) for n in range(6)])
    waiting = list(review_rows(any_store, MODEL))
    body, fields = label_form(waiting[:2])
    assert "### Row 1 (random, 2026-03-04)" in body
    assert text(1) in body
    assert text(2) not in body
    assert list(fields) == [
        f"{kind}_{request_id}" for request_id in IDS[:2] for kind in ("decision", "corrected")
    ]
    given = form(fields, {0: ("accept", None), 1: ("correct", "Tomorrow.")})
    # Somebody else labels a row of the form while it is open.
    store_labels(any_store, MODEL, lines((0, "reject", "")), "x", "bob")
    put_answers(any_store, MODEL, "run 1/a", given, "ann")
    assert read_labels(any_store, MODEL).latest.keys() == {IDS[0]}
    assert take_answers(any_store, MODEL, "run 1/a") == 2
    assert take_answers(any_store, MODEL, "run 1/a") == 0
    labels = read_labels(any_store, MODEL).latest
    assert (labels[IDS[0]].decision, labels[IDS[1]].answer_corrected) == ("accept", "Tomorrow.")
    assert list(any_store.keys("quarantine")) == []
    left = open_rows(review_rows(any_store, MODEL), read_labels(any_store, MODEL))
    assert [row.request_id for row in left] == IDS[2:]
    assert label_form([]) == ("No row waits for review.", {})
    curated(any_store, [logged(0, text(0), answer="```\n### Row 9\n```")])
    shown = label_form(list(review_rows(any_store, MODEL)))[0]
    assert "````\n```\n### Row 9\n```\n````" in shown
    # Labels outlive another curation of their day.
    assert read_labels(any_store, MODEL).latest == labels


def form(fields, answers):
    """What Airflow hands back: every field of the form, filled where there is an answer."""
    given = dict.fromkeys(fields)
    for number, (decision, corrected) in answers.items():
        given[f"decision_{IDS[number]}"] = decision
        given[f"corrected_{IDS[number]}"] = corrected
    return given


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({0: ("accept", "why")}, "answers, line 1: answer_corrected is filled, but"),
        ({1: ("correct", " ")}, "answers, line 2: `correct` needs the corrected answer"),
        ({0: ("perhaps", None)}, "answers, line 1: 'perhaps' is not a decision"),
        ({}, "answers holds no label"),
    ],
)
def test_wrong_answers_in_a_form_are_named(reviewed_store, answers, message):
    _, fields = label_form(list(review_rows(reviewed_store, MODEL)))
    with pytest.raises(UserError) as caught:
        put_answers(reviewed_store, MODEL, "x", form(fields, answers), "ann")
    assert message in str(caught.value)
    gone = {"decision_nope": "accept", "corrected_nope": None}
    with pytest.raises(UserError, match="request 'nope' is not in review"):
        put_answers(reviewed_store, MODEL, "x", gone, "ann")
    assert list(reviewed_store.keys("quarantine")) == list(reviewed_store.keys("labels")) == []


def test_answers_typed_for_an_earlier_version_are_refused(reviewed_store):
    key = f"quarantine/answers/{MODEL}/x/answers.json"
    reviewed_store.put_bytes(key, b'{"text": "1 accept", "by": "ann"}')
    with pytest.raises(UserError, match="typed for an earlier version"):
        take_answers(reviewed_store, MODEL, "x")
