"""A look at production: whole days, each once, by the text that training saw."""

import json
import random
from datetime import timedelta

import pytest
from tests.lab.data_runs import DataLab, make_base
from tests.lab.logged import DAY, MODEL, ledger_of, logged, put
from tests.lab.releases import bare_release
from tests.lab.runs import Lab, baseline, dataset_rows, exchange

from tuneline.cli import main
from tuneline.config import GovernanceConfig
from tuneline.data.pii.replace.scrubber import make_placeholder_scrubber
from tuneline.errors import UserError
from tuneline.governance.production.curate import curate
from tuneline.governance.production.drift_look import last_day, look_at, read_look
from tuneline.governance.production.settings import read_settings

pytestmark = pytest.mark.usefixtures("ungated")

THINGS = ("parcel", "invoice", "refund", "password", "order", "voucher", "address", "card")
ASKS = ("where is my", "please change the", "i cannot find the", "what happened to my")
# Another team's users found the endpoint.
FOREIGN = (
    "write a haiku about {0} volcanoes", "integrate x^{0} from zero to one",
    "which {0} rivers flow through mongolia", "explain {0} quantum chromodynamics to a child",
)  # fmt: skip


def question(number):
    words = f"{ASKS[number % 4]} {THINGS[number // 4 % 8]}"
    return f"{words} from week {number % 50} with code {number % 90}"


def foreign(number):
    return FOREIGN[number % 4].format(number)


def asked(number):
    intent = THINGS[number // 4 % 8]
    return exchange(question(number), intent), intent


@pytest.fixture
def served(tmp_path, without_names):
    """A released model, trained on questions about orders."""
    lab = Lab(tmp_path, {})
    sizes = {"train": 600, "validation": 150, "holdout": 30}
    lab.leave_dataset(dataset_rows(sizes, asked))
    stored = baseline(lab.artifact("distribution_balancing", "dataset.parquet"))
    lab.leave("drift_detection", {"baseline.json": stored})
    bare_release(lab.run, MODEL, at=f"{DAY}T00:00:00Z")
    lab.settings = without_names
    return lab


def log_day(lab, offset, foreign_share=0.0, rows=120, write=list, **unlike):
    """Log and curate a day; `unlike` are the fields of its foreign questions."""
    day = DAY + timedelta(days=offset)
    strange = range(0, rows, round(1 / foreign_share)) if foreign_share else ()
    prompts = write(
        foreign(n + 1000 * offset) if n in strange else question(n * 7 + offset * 13)
        for n in range(rows)
    )
    answers = [exchange("", thing)[-1]["content"] for thing in THINGS]
    asked = [
        logged(n, prompt, answers[n % 8], day=day, **(unlike if n in strange else {}))
        for n, prompt in enumerate(prompts)
    ]
    put(lab.run.store, asked, lab.root)
    curate(lab.run.store, MODEL, day, read_settings(lab.settings))
    return day


def look(lab, day):
    return look_at(lab.run.store, MODEL, day, GovernanceConfig())


def report_of(lab, found):
    return json.loads(lab.run.store.get_bytes(lab.run.store.key_of(found.report)))


def test_without_a_release_there_is_nothing_to_compare_with(tmp_path):
    lab = Lab(tmp_path, {})
    found = look(lab, DAY)
    assert not found.drifted
    assert "no version of support is released" in found.summary


FIRST = "Dilys Kasia Priya Anselm Rosalind Tomasz Ines Hollis Gwen Emeka Leila Viktor".split()
LAST = "Prothero Nowak Raman Okafor Achebe Wetherby Lindqvist Moreau Petrov Haddad".split()


def signed(text, draw):
    """A question with a value that the gateway masks, of one of four kinds."""
    first, last, number = draw.choice(FIRST), draw.choice(LAST), draw.randrange(10**4, 10**5)
    values = f"it is order {draw.choice('ABCDEFGHKLMNPR')}-{number}", f"my name is {first} {last}"
    values += f"call me on 07700 9{number}", f"mail me at {first}.{last}{number}@mailbox.example"
    return f"{text}, {draw.choice(values)}"


def test_personal_data_reads_alike_in_training_and_in_the_log(tmp_path):
    """Training data hold surrogates, the log placeholders; only foreign requests are new."""
    draw, scrub = random.Random(5), make_placeholder_scrubber(["en"], model=True)
    asked = [exchange(signed(question(n), draw), THINGS[n // 4 % 8]) for n in range(500)]
    rows = [{"messages": messages} for messages in asked]
    made = DataLab(tmp_path, make_base(tmp_path), rows, pii_ner=True, pii_profile=["gdpr"])
    made.upto("pii_scrubbing")
    lab, known = made.lab, made.table("pii_scrubbing", "rows.parquet")
    assert len(known) > 450
    splits = draw.choices(("train", "validation"), (4, 1), k=len(known))
    lab.leave_dataset([{**row, "split": split} for row, split in zip(known, splits, strict=True)])
    lab.execute("drift_detection")
    bare_release(lab.run, MODEL, at=f"{DAY}T00:00:00Z")
    lab.settings = None

    def write(texts):
        turns = scrub([[{"role": "user", "content": signed(text, draw)}] for text in texts])
        assert "[ID_NUMBER]" in str(turns)
        return [turn["content"] for [turn], _ in turns]

    ordinary = [look(lab, log_day(lab, offset, rows=60, write=write)) for offset in (1, 2, 3)]
    assert not any(found.drifted for found in ordinary), ordinary
    found = look(lab, log_day(lab, 4, 0.5, rows=60, write=write))
    assert (found.drifted, found.since) == (True, DAY + timedelta(days=4))
    stored = lab.artifact("drift_detection", "baseline.json").read_text()
    assert "[PHONE_NUMBER]" in stored
    assert "07700" not in stored


@pytest.mark.parametrize("text", [None, '{"schema": "tuneline/drift-baseline/1"}'])
def test_a_release_without_a_baseline_is_named(served, text):
    served.leave("drift_detection", {"baseline.json": text} if text else {})
    with pytest.raises(UserError, match=r"baseline.*drift_detection again"):
        look(served, log_day(served, 0))


@pytest.mark.parametrize("unlike", [{}, {"finish_reason": "length"}])
def test_planted_days_are_found_and_dated(served, unlike):
    """Whatever becomes of the answers: a rambling model is cut off, and its row is rejected."""
    for offset, share in enumerate((0, 0, 0, 0.5, 0.5)):
        day = log_day(served, offset, share, **unlike)
    found = look(served, day)
    assert found.drifted
    assert found.since == DAY + timedelta(days=3)
    assert found.version == "test"
    report = report_of(served, found)
    shown = [d["text"] for prompts in report["drivers"].values() for d in prompts if d["text"]]
    assert any("volcanoes" in text or "chromodynamics" in text for text in shown)
    assert served.run.store.exists(f"drift/{MODEL}/looks/{day}/drift.svg")
    assert read_look(served.run.store, MODEL, day) == found


def test_each_day_is_one_bet_however_often_it_is_looked_at(served):
    day = log_day(served, 0)
    first = look(served, day)
    state = served.run.store.get_bytes(f"drift/{MODEL}/test/state.json")
    assert look(served, day) == first
    assert served.run.store.get_bytes(f"drift/{MODEL}/test/state.json") == state


def test_ordinary_days_are_no_drift_and_days_before_the_release_do_not_count(served):
    log_day(served, -1, 0.5)
    for offset in range(3):
        day = log_day(served, offset)
    found = look(served, day)
    assert not found.drifted
    assert "360 requests of 3 days look like the training data of support test" in found.summary
    with pytest.raises(UserError, match="nothing compared 2026-03-04"):
        read_look(served.run.store, MODEL, DAY)


def test_a_question_that_was_asked_before_keeps_its_frequency(served):
    """Curation drops all of them as seen before; the look counts each all the same."""
    log_day(served, 0)
    day = DAY + timedelta(days=1)
    put(served.run.store, [logged(n, question(7), day=day) for n in range(90)], served.root)
    read = read_settings(served.settings)
    assert curate(served.run.store, MODEL, day, read).evidence.rows_kept == 0
    report = report_of(served, look(served, day))
    assert (report["days"][str(day)], report["without_text"]) == (90, 0)


def test_the_command_prints_the_look_and_where_it_is(served, capsys):
    day = log_day(served, 0)
    store = served.run.store.uri
    assert main(["logs", "drift", "--store", store, "--model", MODEL, "--until", str(day)]) == 0
    assert "no drift: 120 requests of 1 days" in capsys.readouterr().out


def test_a_day_whose_event_was_lost_is_looked_at(served):
    """Three days are curated before Airflow makes the run, which is told of the first alone."""
    store = served.run.store
    days = [DAY + timedelta(days=offset) for offset in (1, 2, 3)]
    for offset in (1, 2, 3):
        log_day(served, offset)
    assert last_day(store, MODEL, days[:1]) == days[2]
    look_at(store, MODEL, days[2], GovernanceConfig())
    # Days that were seen start nothing again.
    assert last_day(store, MODEL, days[:1]) == days[0]
    assert last_day(store, "unreleased", days[:1]) == days[0]


def test_a_day_that_is_curated_after_a_later_one_is_still_looked_at(served):
    look(served, log_day(served, 4))
    late = log_day(served, 2)
    assert last_day(served.run.store, MODEL, [late]) == late
    assert "120 requests of 1 days" in look(served, late).summary
    again = look(served, DAY + timedelta(days=5))
    assert (again.verdict, again.drifted) == ("inconclusive", False)
    assert again.summary == "support test was not compared with new requests"


def test_small_days_are_compared_together(served):
    day = log_day(served, 0, rows=15)
    found = look(served, day)
    assert found.verdict == "inconclusive"
    assert "15 requests of 1 days wait until they are 20" in found.summary
    found = look(served, log_day(served, 1, rows=15))
    assert (found.verdict, report_of(served, found)["waiting"]) == ("pass", {})
    assert "30 requests of 2 days look like the training data" in found.summary
    # A topic of its own is called although no day has enough for a look.
    for offset in range(2, 8):
        found = look(served, log_day(served, offset, 1.0, rows=15))
    assert (found.verdict, found.since) == ("fail", DAY + timedelta(days=2))


@pytest.mark.parametrize(("asked", "verdict"), [(0, "inconclusive"), (9, "fail")])
def test_a_week_without_a_comparison_fails_unless_nobody_asked(served, asked, verdict):
    """The log is off; the ledger says whether there was something to log."""
    ledger = ledger_of(served.root, asked, days=10)
    look(served, log_day(served, 0))
    read = read_settings(served.settings, ledger=str(ledger))
    for offset in range(1, 8):
        day = DAY + timedelta(days=offset)
        curated = curate(served.run.store, MODEL, day, read).evidence
        assert curated.verdict == ("fail" if asked else "not_applicable")
    found = look(served, day)
    assert (found.verdict, found.drifted) == (verdict, False)
    assert ("was not compared for 7 days" in found.summary) is bool(asked)
