import json
from collections import Counter

import pyarrow.parquet as pq
import pytest
from benchmarks.workloads.support_chat import make_conversations
from pydantic import ValidationError
from tests.lab.data_runs import answer, chat, clean_rows, text
from tests.lab.runs import value

from tuneline.catalogue import DATA_ORDER
from tuneline.config import DataConfig
from tuneline.data.pii.find.entities import Settings, uncovered_languages
from tuneline.data.pii.measure.plants import KINDS
from tuneline.data.pii.replace.scrubber import Scrubber, make_scrubber
from tuneline.data.pii.replace.surrogates import Surrogates
from tuneline.data.tables.rows import DATASET_COLUMNS, ROW_COLUMNS, TableWriter
from tuneline.errors import UserError

ITEM = "pii_scrubbing"
OFF = dict.fromkeys(KINDS, 1.0)
CARD = "4111 1111 1111 1111"


@pytest.fixture(scope="module")
def named():
    return make_scrubber(DataConfig(source="rows.jsonl"))


def changed_words(pairs):
    """The share of words without digits that are gone; the number of an order is personal data."""
    words, gone = 0, Counter()
    for before, after in pairs:
        for one, other in zip(before, after, strict=True):
            old = Counter(w for w in one["content"].split() if not any(map(str.isdigit, w)))
            words += old.total()
            gone += old - Counter(other["content"].split())
    return gone.total() / words


def test_clean_rows_stay_as_they_are(data_lab):
    lab = data_lab(clean_rows(40))
    entry = lab.upto(ITEM)
    assert value(entry, "rows_changed") == 0
    before = lab.table("schema_validation", "quarantine/rows.parquet")
    after = lab.table(ITEM, "rows.parquet")
    assert [r["messages"] for r in after] == [r["messages"] for r in before]
    assert all(r["raw"] == "" for r in after), "no unscrubbed text outside quarantine"
    lab.agree(ITEM, "pass")


def test_planted_data_is_replaced_and_counted(data_lab):
    rows = clean_rows(40)
    reply = answer("login", f'He said "{CARD}" \\ to me?')
    rows[5] = {"messages": chat(f"{text(5)}, my card is {CARD}", reply)}
    lab = data_lab(rows)
    entry = lab.upto(ITEM)
    assert value(entry, "found_CREDIT_CARD") == 2
    assert value(entry, "rows_changed") == 1
    (row,) = [r for r in lab.table(ITEM, "rows.parquet") if r["source_line"] == 6]
    assert CARD not in json.dumps(row)
    user, assistant = (m["content"] for m in row["messages"])
    surrogate = row["stand_ins"][0]
    shown = user[surrogate["start"] : surrogate["end"]]
    assert surrogate["entity"] == "CREDIT_CARD"
    assert json.loads(assistant) == {"intent": "login", "reply": f'He said "{shown}" \\ to me?'}
    lab.agree(ITEM, "pass")


def test_names_are_demanded_by_gdpr_and_missed_without_a_recogniser(data_lab):
    lab = data_lab(clean_rows(20), pii_profile=["gdpr"], pii_max_left=10)
    entry = lab.upto(ITEM)
    assert value(entry, "leak_PERSON_at_most") > 0.15
    lab.agree(ITEM, "fail")


def test_an_uncovered_language_fails(data_lab):
    lab = data_lab(clean_rows(20), languages=["en", "fi"])
    entry = lab.upto(ITEM)
    assert "Not covered: fi" in entry.summary
    lab.agree(ITEM, "fail")
    own = DataConfig(source="rows.jsonl", languages=["fi"], pii_ner="/models/finnish")
    assert uncovered_languages(own) == {}


def test_a_hit_that_cannot_be_replaced_leaves_the_row(data_lab, monkeypatch):
    rows = clean_rows(20)
    rows[3] = {"messages": chat(text(3), json.dumps({"intent": "login", "anna@mail.com": "x"}))}
    lab = data_lab(rows)
    entry = lab.upto(ITEM)
    (reject,) = lab.rejected(ITEM)
    assert reject["reason"].startswith("residual_pii")
    assert reject["source_line"] == 4
    assert "anna@mail.com" in reject["raw"]
    assert value(entry, "residual_pattern_hits") == 0
    assert lab.gate(ITEM).verdict == "pass"
    monkeypatch.setattr("tuneline.data.pii_scrubbing.reason_to_reject", lambda result: None)
    assert value(lab.step(ITEM), "residual_pattern_hits") == 1
    lab.agree(ITEM, "fail")


def test_people_get_one_surrogate_everywhere(named):
    messages = chat(
        "Hello, my name is Hannah Murphy. HANNAH MURPHY, yes.",
        answer("login", "Dear Hannah, we wrote to Hannah Murphy."),
    )
    scrubbed = named.scrub(["key"], [messages])[0]
    user, reply = (m["content"] for m in scrubbed.messages)
    full = user.removeprefix("Hello, my name is ").split(".")[0]
    assert full.upper() in user
    assert json.loads(reply)["reply"] == f"Dear {full.split()[0]}, we wrote to {full}."


def test_masks_are_typed_and_rows_can_be_refused(data_lab):
    rows = clean_rows(30)
    rows[3] = {"messages": chat(f"{text(3)} anna@mail.com", answer("login", "Mail anna@mail.com"))}
    rows[4] = {"messages": chat(f"{text(4)} pay with {CARD}", answer("login", "ok"))}
    actions = {"EMAIL_ADDRESS": "mask", "CREDIT_CARD": "reject_row"}
    lab = data_lab(rows, pii_actions=actions)
    entry = lab.upto(ITEM)
    (masked,) = [r for r in lab.table(ITEM, "rows.parquet") if r["source_line"] == 4]
    assert masked["messages"][0]["content"].endswith(" [EMAIL_ADDRESS]")
    assert json.loads(masked["messages"][1]["content"])["reply"] == "Mail [EMAIL_ADDRESS]"
    (reject,) = lab.rejected(ITEM)
    assert reject["source_line"] == 5
    assert reject["reason"].startswith("pii_refused: it holds CREDIT_CARD")
    assert value(entry, "rows_refused") == 1
    lab.agree(ITEM, "pass")


def test_surrogates_that_let_values_through_turn_the_verdict(data_lab, monkeypatch):
    monkeypatch.setattr(Surrogates, "of", lambda self, entity, value: value)
    rows = clean_rows(40)
    for n in range(4):
        said = f"{text(n)}, my card is {CARD} and I am Hannah Murphy"
        rows[n] = {"messages": chat(said, answer("login", "Hello Ms Murphy"))}
    lab = data_lab(rows)
    entry = lab.upto(ITEM)
    assert value(entry, "rows_with_values_left") > 0.5
    assert {reject["reason"].partition(":")[0] for reject in lab.rejected(ITEM)} == {"residual_pii"}
    lab.agree(ITEM, "fail")


@pytest.mark.parametrize(
    ("item", "columns"),
    [
        (ITEM, ROW_COLUMNS),
        ("deduplication", ROW_COLUMNS),
        ("distribution_balancing", DATASET_COLUMNS),
    ],
)
def test_a_row_that_is_neither_kept_nor_rejected_fails(data_lab, monkeypatch, item, columns):
    class Losing(TableWriter):
        def write(self, entries, **more):
            super().write(list(entries)[self._names == columns :], **more)

    lab = data_lab(clean_rows(40))
    lab.upto(DATA_ORDER[DATA_ORDER.index(item) - 1])
    for module in ("pii_scrubbing", "tables.rows"):
        monkeypatch.setattr(f"tuneline.data.{module}.TableWriter", Losing)
    entry = lab.step(item)
    assert (entry.verdict, value(entry, "rows_lost")) == ("fail", 1)


def test_settings_that_make_no_sense_are_the_users_error():
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        DataConfig(source="x", pii_max_left=-1)
    with pytest.raises(UserError, match="no entity is called CARD; there are PRIVATE_KEY"):
        Scrubber(Settings(actions={"CARD": "mask"}))


def test_rows_in_a_language_that_is_not_declared_fail_or_warn(data_lab):
    rows = clean_rows(30)
    for n in range(5):
        german = f"Ich habe das Paket nicht erhalten und bitte Sie um eine Antwort, {text(n)}"
        rows[n] = {"messages": chat(german, answer("login", "ok"))}
    lab = data_lab(rows)
    entry = lab.upto(ITEM)
    assert value(entry, "undeclared_language_share") == pytest.approx(5 / 30)
    assert "16.7% of the rows are in a language that data.languages does not" in entry.summary
    lab.agree(ITEM, "fail")
    warned = data_lab(rows, undeclared_language_breach="warn")
    warned.upto(ITEM)
    warned.agree(ITEM, "warn")
    declared = data_lab(rows, languages=["en", "de"])
    assert declared.upto(ITEM).verdict == "pass"
    assert declared.gate(ITEM).verdict == "pass"


def test_no_personal_data_outside_quarantine(data_lab, capfd):
    secrets = ["4111 1111 1111 1111", "anna.k@mail.com", "Zbigniew", "203.0.113.77", "hunter42!"]
    rows = clean_rows(30)
    said = f"my name is Zbigniew, {secrets[0]}, {secrets[1]}, {secrets[3]}, password: {secrets[4]}"
    rows[2] = {"messages": chat(f"{text(2)} {said}", answer("login", f"Dear {said}"))}
    rows[3] = {"messages": chat(text(3), json.dumps({"intent": "login", secrets[1]: "x"}))}
    rows[4] = {"messages": chat(f"{text(4)} 078-05-1120", answer("login", "ok"))}
    lab = data_lab(rows, pii_profile=["gdpr"], pii_ner=True, pii_actions={"US_SSN": "reject_row"})
    lab.upto(ITEM)
    lab.gate(ITEM)
    raw = [secret.encode() for secret in (*secrets, "078-05-1120")]
    inside = outside = 0
    for file in lab.lab.root.rglob("*"):
        if not file.is_file() or file.name == "rows.jsonl" or "scratch" in file.parts:
            continue
        data = file.read_bytes()
        if file.suffix == ".parquet":
            data = json.dumps(pq.read_table(file).to_pylist(), default=str).encode()
        found = [secret for secret in raw if secret in data]
        if "quarantine" in file.parts:
            inside += len(found)
        else:
            assert found == [], f"{file} holds {found}"
            outside += 1
    assert inside >= len(raw)
    assert outside >= 4
    shown = "".join(capfd.readouterr())
    assert not any(secret.decode() in shown for secret in raw)


def test_no_false_alarm_on_clean_sample_data(named):
    rows = make_conversations(360)
    results = named.scrub([str(n) for n in range(len(rows))], rows)
    assert not any(result.residual or result.left or result.foreign for result in results)
    pairs = [(row, result.messages) for row, result in zip(rows, results, strict=True)]
    assert changed_words(pairs) < 0.005
