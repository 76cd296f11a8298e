"""A day of logged requests becomes a curated day; nothing is lost, and no name is left."""

import hashlib
import json
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.lab.data_runs import make_base, text
from tests.lab.logged import DAY, MODEL, ledger_of, logged, put
from tests.lab.releases import bare_release
from tests.lab.runs import Lab, dataset_rows, exchange

from tuneline.artifacts.request_log import Reason, folder_name, read_day
from tuneline.cli import main
from tuneline.data.gates.expectations import validate
from tuneline.errors import TunelineError, UserError
from tuneline.evidence import Verdict
from tuneline.governance.production import curate as module
from tuneline.governance.production.curate import curate, day_suite
from tuneline.governance.production.curated_days import REQUESTS, open_day
from tuneline.governance.production.settings import read_settings
from tuneline.store import open_store


def table(day, tmp_path):
    assert day.fetch(tmp_path / REQUESTS)
    return pq.read_table(tmp_path / REQUESTS).to_pylist()


def rows_kept(day, tmp_path):
    return [row for row in table(day, tmp_path) if row["reason"] is None]


def gone(day, tmp_path):
    return {row["request_id"]: row for row in table(day, tmp_path) if row["reason"]}


def reasons(day, tmp_path):
    return {request_id: row["reason"] for request_id, row in gone(day, tmp_path).items()}


def reviewed(day, tmp_path):
    return {row["request_id"] for row in table(day, tmp_path) if row["in_review"]}


def objects(store, prefix="curated"):
    return {key: store.get_bytes(key) for key in store.keys(prefix)}


def test_a_clean_day_is_kept_whole(any_store, curated, tmp_path):
    day = curated(any_store, [logged(n, text(n)) for n in range(30)])
    rows = rows_kept(day, tmp_path)
    assert [row["request_id"] for row in rows] == [f"req-04-{n:06d}" for n in range(30)]
    assert [row["messages"][0]["content"] for row in rows] == [text(n) for n in range(30)]
    assert {(row["seen"], row["weight"]) for row in rows} == {(1, 1.0)}
    assert day.evidence.verdict == Verdict.PASS
    assert (day.evidence.requests_in, day.evidence.rows_kept) == (30, 30)
    assert gone(day, tmp_path) == {}
    assert "requests" in any_store.get_bytes(f"{day.prefix}/data_docs/index.html").decode()
    assert open_day(any_store, MODEL, DAY) == day


UNUSABLE = [
    ({"status": "timeout", "answer": None}, Reason.ERROR_STATUS),
    ({"status": "client_error", "answer": None, "served_by": None}, Reason.ERROR_STATUS),
    ({"status": "died_midstream", "answer": "It is on"}, Reason.BROKEN_STREAM),
    ({"status": "client_aborted", "answer": "It is on"}, Reason.BROKEN_STREAM),
    ({"messages": None, "answer": None, "redactions": None}, Reason.NO_TEXT),
    ({"messages": [{"role": "user", "content": "  "}]}, Reason.NO_TEXT),
    ({"answer": " \n"}, Reason.EMPTY_ANSWER),
    ({"answer": "", "finish_reason": "tool_calls"}, Reason.TOOL_USE),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]},
     Reason.TOOL_USE),
    ({"finish_reason": "length"}, Reason.CUT_OFF),
    ({"finish_reason": "content_filter"}, Reason.FILTERED),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]},
     Reason.MALFORMED),
    ({"answer": "Yes.<|im_end|>"}, Reason.MALFORMED),
    ({"answer": "<tool called>"}, Reason.MALFORMED),
]  # fmt: skip


def test_each_request_that_cannot_be_used_has_its_reason(store, curated, tmp_path):
    broken = [logged(n, text(n), **other) for n, (other, _) in enumerate(UNUSABLE)]
    day = curated(store, broken)
    found = reasons(day, tmp_path)
    assert [found[row.request_id] for row in broken] == [reason for _, reason in UNUSABLE]
    rows = gone(day, tmp_path).values()
    assert all(row["answer"] is None for row in rows)
    # Their prompts are watched for drift.
    assert [row["detail"] for row in rows if row["messages"] is None] == [None, None]
    assert (day.evidence.verdict, day.evidence.rows_kept) == (Verdict.PASS, 0)
    assert sum(day.evidence.rejected.values()) == len(broken)


def test_answers_of_another_upstream_and_doubtful_ones_stay(store, curated, tmp_path):
    rows = [
        logged(1, text(1), fallback_reason="timeout", served_by="large"),
        logged(2, text(2), status="low_confidence", confidence=-0.9),
        logged(3, text(3), confidence=-1.6),
        logged(4, text(4), messages=[{"role": "developer", "content": "Be brief."},
                                     {"role": "user", "content": text(4)}]),
    ]  # fmt: skip
    kept = rows_kept(curated(store, rows), tmp_path)
    strata = ["fallback", "low_confidence", "low_confidence", "random"]
    assert [row["stratum"] for row in kept] == strata
    assert kept[3]["messages"][0] == {"role": "system", "content": "Be brief."}


def test_rows_that_the_settings_refuse(store, curated, tmp_path):
    config = tmp_path / "settings.yaml"
    config.write_text(
        "data: {pii_ner: false, max_tokens: 60, pii_actions: {EMAIL_ADDRESS: reject_row}}\n"
    )
    removed = [{"type": "EMAIL_ADDRESS", "count": 2}]
    rows = [
        logged(1, "My address is jane.roe@mail-host.org, please use it.", redactions=removed),
        logged(2, text(2, words=200)),
        logged(3, "Where is my parcel?"),
    ]
    base = make_base(tmp_path / "base")
    day = curated(store, rows, config=config, base_model=str(base))
    found = reasons(day, tmp_path)
    assert list(found.values()) == [Reason.PII_REFUSED, Reason.TOO_LONG]
    (kept,) = rows_kept(day, tmp_path)
    assert 0 < kept["n_tokens"] <= 60
    assert b"jane.roe" not in b"".join(objects(store).values())
    assert day.evidence.redactions["gateway"] == {"EMAIL_ADDRESS": 2}


def test_repeated_questions_keep_their_frequency(store, curated, tmp_path):
    rows = [
        logged(1, text(1), fallback_reason="timeout"),
        logged(2, text(1), sample_rate=0.5),
        logged(3, f"{text(1)} please", sample_rate=0.25),
        logged(4, text(4)),
    ]
    day = curated(store, rows)
    kept = {row["request_id"]: row for row in rows_kept(day, tmp_path)}
    # The model's own answer stays, not the earlier one of another upstream.
    assert list(kept) == ["req-04-000002", "req-04-000004"]
    assert (kept["req-04-000002"]["seen"], kept["req-04-000002"]["weight"]) == (3, 7.0)
    assert reasons(day, tmp_path) == {
        "req-04-000001": Reason.DUPLICATE,
        "req-04-000003": Reason.NEAR_DUPLICATE,
    }


def test_a_question_of_an_earlier_day_is_seen_before(store, curated, tmp_path):
    before = DAY - timedelta(days=2)
    curated(store, [logged(n, text(n), day=before) for n in range(3)])
    rows = [logged(9, text(1)), logged(10, text(1)), logged(11, text(20))]
    day = curated(store, rows)
    left = gone(day, tmp_path)
    assert left["req-04-000009"]["reason"] == Reason.SEEN_BEFORE
    assert left["req-04-000009"]["of"] == "req-02-000001"
    assert left["req-04-000009"]["of_day"] == "2026-03-02"
    assert (left["req-04-000009"]["seen"], left["req-04-000009"]["weight"]) == (2, 2.0)
    assert left["req-04-000010"]["of"] == "req-04-000009"
    assert [ref.name for ref in day.evidence.inputs] == ["logs", "curated/2026-03-02"]
    config = tmp_path / "short.yaml"
    config.write_text("data: {pii_ner: false}\ncuration: {lookback_days: 1}\n")
    assert curated(store, rows, config=config).evidence.rows_kept == 2


def test_names_and_addresses_are_gone_from_everything_written(store, curated, tmp_path):
    rows = [
        logged(1, "My name is Margaret Thornbury and I live at 14 Elm Street. Where is it?",
               "Dear Margaret Thornbury, it goes to 14 Elm Street."),
        logged(2, "Call Margaret Thornbury.", answer=None, status="timeout"),
        *(logged(n, text(n)) for n in range(10, 20)),
    ]  # fmt: skip
    day = curated(store, rows, config=None, sample_rate=1.0)
    kept = rows_kept(day, tmp_path)
    for written in [*objects(store).values(), json.dumps(kept, default=str).encode()]:
        assert b"Thornbury" not in written
        assert b"14 Elm" not in written
    assert kept[0]["messages"][0]["content"].startswith("My name is ")
    found = day.evidence.redactions["curation"]
    assert found["PERSON"] >= 2
    assert found["STREET_ADDRESS"] >= 2


@pytest.mark.parametrize("released", [True, False])
def test_rows_like_the_dataset_are_marked_and_held_out_ones_not_offered(
    curated, tmp_path, monkeypatch, released
):
    """As the DAG curates, the released dataset is the reference; else it may be named."""
    lab = Lab(tmp_path, {"data": {"label_field": "topic"}})
    lab.leave_dataset(
        dataset_rows({"train": 30, "holdout": 1}, lambda n: (exchange(text(n), "x"), "x"))
    )
    if released:
        bare_release(lab.run, MODEL)
    other = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich."
    rows = [logged(n, asked) for n, asked in enumerate((text(29), text(30), other))]
    named = {} if released else {"reference": str(tmp_path / "dataset.parquet")}
    day = curated(lab.run.store, rows, sample_rate=1.0, **named)
    kept = rows_kept(day, tmp_path)
    found = [(row["resembles"], row["stratum"], row["in_review"]) for row in kept]
    assert found == [
        ("train", "random", True), ("holdout", None, False), ("nothing", "novel", True)
    ]  # fmt: skip
    # The class of a run that was told it, not one that schema_validation stated.
    assert day.evidence.settings["data"]["label_field"] == ("topic" if released else "auto")
    assert kept[0]["novelty"] == 0
    assert kept[2]["novelty"] > 0.9
    monkeypatch.setattr(module, "compare", lambda *given: [])
    with pytest.raises(TunelineError, match=r"requests\.offered_like"):
        curated(lab.run.store, rows, sample_rate=0.9)


@pytest.mark.parametrize(
    ("asked", "rows", "rate", "verdict"),
    [
        (400, 0, 1.0, "fail"), (400, 330, 1.0, "fail"), (400, 399, 1.0, "pass"),
        (400, 40, 0.1, "pass"), (400, 20, 0.1, "fail"), (0, 0, 1.0, "not_applicable"),
        (1, 0, 1.0, "inconclusive"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("ungated")
def test_a_log_with_fewer_requests_than_the_ledger_fails(
    store, curated, tmp_path, asked, rows, rate, verdict
):
    ledger = str(ledger_of(tmp_path, asked))
    day = curated(store, [logged(n, text(1), sample_rate=rate) for n in range(rows)], ledger=ledger)
    assert day.evidence.verdict == verdict
    assert f"the ledger has {asked} requests" in day.evidence.summary
    assert ("production_log is on" in day.evidence.summary) is (verdict == "fail")


def test_the_review_sample_takes_the_quota_of_each_stratum(store, curated, tmp_path):
    config = tmp_path / "quotas.yaml"
    config.write_text("data: {pii_ner: false}\ncuration: {review_random: 5, review_fallback: 2}\n")
    rows = [logged(n, text(n)) for n in range(20)]
    rows += [logged(n, text(n), fallback_reason="timeout") for n in range(30, 38)]
    day = curated(store, rows, config=config)
    drawn = {name: (one.rows, one.in_review) for name, one in day.evidence.strata.items()}
    assert drawn == {"random": (20, 5), "fallback": (8, 2)}
    first = reviewed(day, tmp_path)
    assert not first <= {row.request_id for row in (*rows[:5], *rows[20:22])}
    # A request that comes later moves at most one other one out.
    day = curated(store, [*rows, logged(99, text(99))], config=config)
    assert len(first - reviewed(day, tmp_path)) <= 1
    full = curated(store, rows, config=config, sample_rate=1.0)
    assert len(reviewed(full, tmp_path)) == 28


def test_the_same_input_gives_the_same_bytes(any_store, curated, tmp_path, without_names):
    rows = [logged(n, text(n % 25)) for n in range(30)]
    first = curated(any_store, rows)
    before = objects(any_store)
    assert curated(any_store, rows) == first
    assert objects(any_store) == before
    other = curated(any_store, rows, sample_rate=0.5)
    assert other.evidence != first.evidence
    again = curated(any_store, rows)
    assert again.evidence.dump() == first.evidence.dump()
    assert again.uri != first.uri
    # In other parts and order the requests are the same.
    any_store.delete_prefix("logs")
    put(any_store, rows[20:], tmp_path, "part-a")
    put(any_store, rows[:20], tmp_path, "part-b")
    put(any_store, rows[5:9], tmp_path, "part-c")
    assert curate(any_store, MODEL, DAY, read_settings(without_names)) == again


def test_a_day_without_logs_says_so(any_store, curated, capsys):
    argv = ["logs", "curate", "--store", any_store.uri, "--model", MODEL, "--day", str(DAY)]
    assert main([*argv, "--json"]) == 0
    evidence = json.loads(capsys.readouterr().out)
    assert evidence["verdict"] == "not_applicable"
    assert evidence["requests_in"] == 0
    assert open_day(any_store, MODEL, DAY).evidence.files == []


def test_a_curated_day_outlives_its_logs(store, curated, capsys):
    day = curated(store, [logged(1, text(1))])
    store.delete_prefix(f"logs/{folder_name(MODEL)}")
    assert curate(store, MODEL, DAY, read_settings()) == day
    assert "are gone; the curated day stays" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--day", "2026-03-04", "--ledger", "/no.sqlite"], "no such usage ledger"),
        (["--day", str((datetime.now(UTC) + timedelta(days=2)).date())], "is in the future"),
        (["--day", "4.3.2026"], "is not a day; write it as YYYY-MM-DD"),
        (["--day", "20260304"], "is not a day"),
        (["--day", "2026-03-04", "--model", "../etc/ "], "is not the name of a model"),
        (["--day", "2026-03-04", "--model", ".."], "is not the name of a model"),
        (["--day", "2026-03-04", "--sample", "0"], "--sample 0: give a share"),
        (["--day", "2026-03-04", "--reference", "/no/d.parquet"], "/no/d.parquet does not exist"),
        (["--day", "2026-03-04", "--reference", __file__], "is not a dataset"),
        (["--day", "2026-03-04", "--config", "/no.yaml"], "/no.yaml does not exist"),
    ],
)
def test_wrong_use_is_one_sentence(argv, message, store, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TERMINATION_MESSAGE_PATH", str(tmp_path / "message"))
    put(store, [logged(1, text(1))], tmp_path)
    assert main(["logs", "curate", "--store", store.uri, "--model", MODEL, *argv]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert list(store.keys("curated")) == []


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("curation: {lookback_days: -1}", "curation.lookback_days"),
        ("curation: {reviews: 1}", "curation.reviews"),
        ("data: {pii_profil: [gdpr]}", "did you mean pii_profile"),
    ],
)
def test_wrong_settings_are_named(section, message, tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(section)
    with pytest.raises(TunelineError, match=message):
        read_settings(path)


def as_of_version_1(store, day):
    """Make a stored day one that an earlier version curated."""
    key, pointer = f"{day.prefix}/evidence.json", f"{day.prefix.rpartition('/')[0]}/current.json"
    raw = store.get_bytes(key).replace(b"tuneline/curated/2", b"tuneline/curated/1")
    store.put_bytes(key, raw)
    document = json.loads(store.get_bytes(pointer))
    document["evidence_sha256"] = hashlib.sha256(raw).hexdigest()
    store.put_bytes(pointer, json.dumps(document).encode())


def test_a_day_of_an_earlier_version_is_named_and_can_be_curated_again(store, curated, capsys):
    before = DAY - timedelta(days=1)
    rows = [logged(n, text(n), day=before) for n in range(3)]
    as_of_version_1(store, curated(store, rows))
    with pytest.raises(UserError, match="curate` for this day again"):
        open_day(store, MODEL, before)
    assert curated(store, [logged(1, text(1))]).evidence.rows_kept == 1
    assert "left out: " in capsys.readouterr().err
    assert curated(store, rows).evidence.rows_kept == 3
    assert open_day(store, MODEL, before).evidence.rows_kept == 3


ROWS = [
    *(logged(n, text(n), sample_rate=0.5) for n in range(8)),
    logged(8, text(1)),
    logged(9, text(9), status="timeout"),
]


def with_column(name, value, row=0):
    def edit(table):
        at, kind = table.schema.get_field_index(name), table.schema.field(name)
        values = table[name].to_pylist()
        values[row] = value
        return table.set_column(at, kind, pa.array(values, kind.type))

    return edit


# Request 0 stays, 8 is a duplicate, 9 has no answer.
FAULTS = [
    (lambda t: t.slice(1), "row count to equal"),
    (lambda t: pa.concat_tables([t, t.slice(0, 1)]), "requests.request_id"),
    (with_column("request_id", None), "requests.request_id"),
    (with_column("request_id", "req-x"), "requests.of_the_log"),
    (with_column("time", datetime(2026, 3, 5, tzinfo=UTC)), "requests.of_the_day"),
    (with_column("seen", 9), "requests.counted"),
    (with_column("seen", 0), "requests.seen"),
    (with_column("weight", 2.5), "requests.counted_weight"),
    (with_column("weight", 0.5), "requests.weight"),
    (with_column("similarity", 1.5), "requests.similarity"),
    (with_column("novelty", -0.1), "requests.novelty"),
    (with_column("in_review", False), "requests.offered"),
    (with_column("in_review", True, 9), "requests.offered_and_gone"),
    (with_column("stratum", "other"), "requests.stratum"),
    (with_column("resembles", "holdout"), "requests.offered_like"),
    (with_column("resembles", None), "requests.offered_like"),
    (with_column("answer", None), "requests.kept_without_text"),
    (with_column("of", None, 8), "requests.replaced_by_nothing"),
    (with_column("reason", "mood", 9), "requests.reason"),
    (with_column("reason", "no_text", 8), "requests.counted"),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory, without_names):
    """The table of a day, what the log says, and the number of rows that are offered."""
    root = tmp_path_factory.mktemp("day")
    store = open_store((root / "store").as_uri())
    put(store, ROWS, root)
    day = curate(store, MODEL, DAY, read_settings(without_names))
    day.fetch(root / REQUESTS)
    offered = sum(count.in_review for count in day.evidence.strata.values())
    return root / REQUESTS, read_day(store, MODEL, DAY), offered


@pytest.mark.parametrize(("edit", "where"), FAULTS)
def test_each_planted_fault_breaks_an_expectation(written, tmp_path, edit, where):
    path, log, offered = written
    pq.write_table(edit(pq.read_table(path)), tmp_path / REQUESTS)
    suite = day_suite(tmp_path / REQUESTS, log, DAY, offered)
    verdict, failures, _ = validate([suite], tmp_path / "gx")
    assert verdict == Verdict.FAIL
    assert any(where in failure.text for failure in failures), failures


def test_a_lost_request_stops_the_day(store, curated, monkeypatch):
    before = curated(store, [logged(n, text(n)) for n in range(5)])
    write = module.write_requests

    def losing(path, facts, scrubbed, requests):
        write(path, facts.slice(1), scrubbed, requests[1:])

    monkeypatch.setattr(module, "write_requests", losing)
    rows = [logged(2, text(2), messages=None), logged(3, text(3)), logged(4, text(4))]
    with pytest.raises(TunelineError, match=r"does not add up.*row count to equal"):
        curated(store, rows)
    assert open_day(store, MODEL, DAY) == before
