"""The production log: what is a row of it, what never is in one, and what it costs nobody."""

import json
import logging
import os
import stat
import sys
import time
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path

import boto3
import httpx
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from tests.lab import scrubbers
from tests.lab.commands import call
from tests.lab.upstream_server import UpstreamServer
from tests.lab.waiting import wait_for

from tuneline.artifacts.request_log import days, read_day
from tuneline.cli.serving import _scrubber_for
from tuneline.data.pii.find.models import fetch_entity_model
from tuneline.errors import RetryableError, UserError
from tuneline.serving.gateway.app.routes import create_app
from tuneline.serving.gateway.config import ProductionLogConfig, load_config
from tuneline.serving.gateway.logs import production_log
from tuneline.serving.gateway.logs.production_log import ProductionLog, is_sampled
from tuneline.serving.gateway.logs.scrubbing import ScrubbingProcess
from tuneline.serving.gateway.logs.spool import Spool, SpoolFull, Uploader
from tuneline.serving.gateway.metrics import Metrics
from tuneline.serving.processes import free_port
from tuneline.store import FileStore, open_store

from .conftest import CHAT, ask, upstream_entry

PREFIX = "tuneline_gateway_production_log"
# Written down by hand, so that nothing the detector knows made them.
PLANTED = {
    "EMAIL_ADDRESS": "jane.q.doe@shop-mail.com",
    "PHONE_NUMBER": "+49 30 901820",
    "CREDIT_CARD": "5555 5555 5555 4444",
    "IBAN_CODE": "DE89 3704 0044 0532 0130 00",
    "US_SSN": "219-09-9999",
    "IP_ADDRESS": "203.0.114.77",
    "API_KEY": "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "PASSWORD": "correct9horse",
    "PRIVATE_KEY": "MIIEowIBAAKCAQEAuXk",
}
QUESTION = (
    "I am {EMAIL_ADDRESS}, call {PHONE_NUMBER}. Card {CREDIT_CARD}, account {IBAN_CODE}, ssn "
    "{US_SSN}, from {IP_ADDRESS}. My token is {API_KEY} and my password is {PASSWORD}\n"
    "-----BEGIN RSA PRIVATE KEY-----\n{PRIVATE_KEY}\n-----END RSA PRIVATE KEY-----"
).format(**PLANTED)


class Leaky(UpstreamServer):
    """A model that repeats personal data; a stream of it is split in the middle of values."""

    answer = f"Written to {PLANTED['EMAIL_ADDRESS']} and {PLANTED['CREDIT_CARD']}."

    def _text(self, words: int, first: int = 0) -> str:
        if words > 1:
            return self.answer
        step = -(-len(self.answer) // self.words)
        return self.answer[first * step : (first + words) * step]


@pytest.fixture
def store(tmp_path):
    return open_store((tmp_path / "store").as_uri())


@pytest.fixture
def section(store):
    """Return the settings of a quick log."""
    return {"store": store.uri, "spool": "spool", "flush_interval_s": 0.05, "part_seconds": 0.2}


def today() -> datetime:
    return datetime.now(UTC)


def rows_of(store, model: str = "support") -> list[dict]:
    return [row for day in days(store, model) for row in read_day(store, model, day).to_pylist()]


def value(gateway, name: str) -> float:
    lines = gateway.metrics.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{PREFIX}_{name}"))


def user(text: object) -> list[dict]:
    return [{"role": "user", "content": text}]


def test_answers_are_rows_of_the_day(start, small, large, section, store):
    small.logprob = -0.5
    limits = {"low_confidence": {"min_mean_logprob": -1.0}}
    gateway = start(
        upstream_entry(small, version="run-7", weights_sha256="a" * 64),
        large,
        model=limits,
        production_log=section,
    )
    began = today()
    messages = [{"role": "system", "content": "Be kind."}, *user("Where is my parcel?")]
    response = gateway.chat(messages=messages)
    gateway.stream()
    gateway.stop()
    assert days(store, "support") == [began.date()]
    row, streamed = rows_of(store)
    # The column has milliseconds.
    assert began - timedelta(milliseconds=1) <= row["time"] <= today()
    expected = {
        **{"request_id": response.headers["x-request-id"], "key": "tester-0", "model": "support"},
        **{"model_version": "run-7", "weights_sha256": "a" * 64, "messages": messages},
        **{"served_by": "small", "fallback_reason": None},
        **{"prompt_tokens": 6, "completion_tokens": 5},
        **{"finish_reason": "stop", "status": "ok", "sample_rate": 1.0, "redactions": []},
        **{"ttft_ms": None, "confidence": -0.5},
    }
    assert expected.items() <= row.items()
    assert row["answer"] == response.json()["choices"][0]["message"]["content"]
    assert row["latency_ms"] > 0
    assert (streamed["status"], streamed["finish_reason"]) == ("ok", "stop")
    assert streamed["answer"] == "".join(f"small-{i} " for i in range(5))
    assert 0 < streamed["ttft_ms"] <= streamed["latency_ms"]


def test_requests_that_break_off_are_rows(start, small, section, store):
    gateway = start(small, production_log=section)
    small.mode = "die_after"
    assert not gateway.stream()[2]
    small.mode, small.words, small.token_delay_s = "ok", 200, 0.02
    with gateway.client.stream("POST", f"/v1/{CHAT}", json=ask(stream=True)) as response:
        next(response.iter_raw())
    small.mode = "hang"
    with pytest.raises(httpx.ReadTimeout):
        gateway.client.post(f"/v1/{CHAT}", json=ask(), timeout=0.3)
    wait_for(lambda: value(gateway, "rows_total") == 3)
    gateway.stop()
    rows = rows_of(store)
    assert [row["status"] for row in rows] == ["died_midstream", *["client_aborted"] * 2]
    assert [row["served_by"] for row in rows] == ["small", "small", None]
    assert (rows[0]["finish_reason"], rows[0]["answer"]) == (None, "small-0 small-1 ")


def test_a_fallback_states_who_answered_and_why(calm, small, large, section, store):
    gateway = calm(small, large, production_log=section)
    small.mode = "error"
    gateway.chat()
    large.mode = "busy"
    assert gateway.chat().status_code == 503
    large.mode = "bad_request"
    assert gateway.chat().status_code == 400
    gateway.stop()
    served, nobody, refused = rows_of(store)
    assert (served["served_by"], served["fallback_reason"]) == ("large", "upstream_5xx")
    assert served["status"] == "ok"
    assert (nobody["served_by"], nobody["status"]) == (None, "upstream_busy")
    assert (nobody["answer"], nobody["prompt_tokens"]) == (None, None)
    assert nobody["messages"] == user("a b c")
    assert refused["status"] == "client_error"


def test_planted_personal_data_is_nowhere(start, section, store, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    leaky = Leaky("leaky")
    try:
        gateway = start(leaky, production_log={**section, "part_seconds": 3600})
        escaped = PLANTED["EMAIL_ADDRESS"].replace("@", "\\u0040")
        sent = [
            gateway.chat(messages=user(QUESTION), user=PLANTED["EMAIL_ADDRESS"]),
            gateway.chat(
                messages=[
                    {"role": PLANTED["EMAIL_ADDRESS"], "content": "hello", "name": QUESTION},
                    {"role": "user", "content": "and", "tool_calls": [{"x": QUESTION}]},
                    {"role": "assistant", "content": f'{{"{escaped}": "{escaped}"}}'},
                    *user("then"),
                ]
            ),
            gateway.chat(messages=user(QUESTION), stream=True),
        ]
        leaky.mode = "error"
        sent.append(gateway.chat(messages=user(QUESTION)))
        assert [response.status_code for response in sent] == [200, 200, 200, 502]
        assert PLANTED["EMAIL_ADDRESS"] in sent[0].text
        wait_for(lambda: value(gateway, "rows_total") == 4)
        spooled = list((tmp_path / "spool").rglob("*.jsonl"))
        assert [len(path.read_bytes().splitlines()) for path in spooled] == [4]
        # Even scrubbed text is the gateway's own.
        assert stat.S_IMODE(spooled[0].stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700
        assert_nowhere(tmp_path)
        assert value(gateway, "redactions_total") >= 3 * len(PLANTED)
        gateway.stop()
    finally:
        leaky.stop()
    assert not list((tmp_path / "spool").rglob("*.jsonl"))
    rows = rows_of(store)
    assert len(rows) == 4
    assert_nowhere(tmp_path)
    assert not [text for text in PLANTED.values() if text in caplog.text]
    found = {entry["type"]: entry["count"] for entry in rows[0]["redactions"]}
    # The question has one of each, and the answer repeats two.
    assert found == {name: 1 + (name in ("EMAIL_ADDRESS", "CREDIT_CARD")) for name in PLANTED}
    assert rows[0]["answer"] == "Written to [EMAIL_ADDRESS] and [CREDIT_CARD]."
    assert rows[2]["answer"] == rows[0]["answer"]
    assert rows[1]["messages"][0] == {"role": "other", "content": "hello"}


def assert_nowhere(folder: Path) -> None:
    """No file below a folder holds planted data, be it compressed, or with other spacing."""
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        content = path.read_bytes()
        if path.suffix == ".parquet":
            content += json.dumps(pq.read_table(path).to_pylist(), default=str).encode()
        packed = content.replace(b" ", b"")
        for text in PLANTED.values():
            assert text.replace(" ", "").encode() not in packed, path


@pytest.mark.parametrize(
    ("scrub", "why"),
    [
        (scrubbers.raises, "ValueError"),
        (scrubbers.dies, "its process ended"),
        (scrubbers.hangs, "it took over 0."),
    ],
)
def test_text_that_cannot_be_scrubbed_is_not_written(
    start, small, section, store, tmp_path, monkeypatch, caplog, scrub, why
):
    # The process imports the scrubber by its name.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.setattr(production_log, "ScrubbingProcess", partial(ScrubbingProcess, 0.5))
    gateway = start(small, production_log=section)
    gateway.runtime.production_log.scrub_with(scrub)
    gateway.chat(messages=user(QUESTION))
    # Meanwhile others are served, and their rows are scrubbed after it.
    assert gateway.chat().is_success
    wait_for(lambda: value(gateway, "scrub_failures_total") == 1)
    gateway.stop()
    row, other = rows_of(store)
    assert (row["messages"], row["answer"], row["redactions"]) == (None, None, None)
    assert row["prompt_tokens"] > 0
    assert other["messages"][0]["content"] == "a b c"
    assert f"scrubbing {row['request_id']} failed: {why}" in caplog.text
    assert_nowhere(tmp_path)


def test_what_scrubs_has_no_secret(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "planted")
    process = ScrubbingProcess()
    assert process.scrub(list, []) == []
    environment = Path(f"/proc/{process._process.pid}/environ").read_bytes()
    process.close()
    assert b"PYTHONPATH" in environment
    assert b"planted" not in environment


def test_a_text_that_is_not_unicode_costs_no_other_row(start, small, section, store):
    gateway = start(small, production_log=section)
    body = json.dumps(ask()).replace("a b c", "half \\ud83d pair, nul \\u0000")
    assert gateway.client.post(f"/v1/{CHAT}", content=body).is_success
    gateway.chat()
    gateway.stop()
    assert [row["messages"][0]["content"] for row in rows_of(store)] == [
        "half ? pair, nul \x00",
        "a b c",
    ]


def test_a_key_can_be_left_out_while_the_gateway_runs(start, small, section, store, tmp_path):
    gateway = start(small, production_log=section)
    gateway.chat()
    keys = tmp_path / "keys.json"
    document = json.loads(keys.read_text())
    document["keys"][0]["log"] = False
    keys.write_text(json.dumps(document))
    gateway.follow_keys()
    gateway.chat()
    gateway.chat(stream=True)
    assert value(gateway, 'skipped_total{reason="key"}') == 2
    gateway.stop()
    assert len(rows_of(store)) == 1


def test_a_sample_is_drawn_by_request_id(start, small, section, store):
    gateway = start(small, production_log={**section, "sample_rate": 0.4})
    ids = [gateway.chat().headers["x-request-id"] for _ in range(40)]
    skipped = value(gateway, 'skipped_total{reason="sample"}')
    gateway.stop()
    rows = rows_of(store)
    assert {row["request_id"] for row in rows} == {i for i in ids if is_sampled(i, 0.4)}
    assert {row["sample_rate"] for row in rows} == {0.4}
    assert skipped == 40 - len(rows)
    # A larger sample holds the smaller one; their sizes lie within four standard deviations.
    many = [f"req-{number}" for number in range(10_000)]
    tenth, half = ({i for i in many if is_sampled(i, rate)} for rate in (0.1, 0.5))
    assert tenth < half
    assert abs(len(tenth) - 1000) < 120
    assert abs(len(half) - 5000) < 200
    assert not any(is_sampled(i, 0.0) for i in many)
    assert all(is_sampled(i, 1.0) for i in many)


def test_requests_do_not_notice_a_store_that_is_down_and_the_next_start_uploads_them(
    start, small, section, store, caplog
):
    store.root.mkdir()
    # The folder cannot be made where a file is.
    (store.root / "logs").touch()
    first = start(small, production_log=section)
    assert [first.chat().status_code for _ in range(5)] == [200] * 5
    wait_for(lambda: value(first, "upload_failures_total") >= 2)
    assert first.chat().status_code == 200
    assert first.probe()["status"] == "ready"
    assert value(first, "uploaded_rows_total") == 0
    assert value(first, "spool_bytes") > 0
    with pytest.raises(UserError, match="another gateway uses this spool"):
        start(small, production_log=section)
    first.stop()
    assert caplog.text.count("production log: no upload") == 1
    (store.root / "logs").unlink()
    second = start(small, production_log=section)
    # A part leaves the spool after its rows are counted.
    wait_for(lambda: value(second, "uploaded_rows_total") == 6)
    wait_for(lambda: value(second, "spool_bytes") == 0)
    second.stop()
    assert len(rows_of(store)) == 6


def test_a_bucket_that_comes_later_gets_everything(start, small, section, monkeypatch):
    port = free_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    gateway = start(small, production_log={**section, "store": "s3://production/main"})
    assert [gateway.chat().status_code for _ in range(3)] == [200] * 3
    wait_for(lambda: value(gateway, "upload_failures_total") >= 1)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port)
    server.start()
    try:
        boto3.session.Session().client("s3").create_bucket(Bucket="production")
        wait_for(lambda: value(gateway, "uploaded_rows_total") == 3)
        gateway.stop()
        assert len(rows_of(open_store("s3://production/main"))) == 3
    finally:
        server.stop()


def test_a_full_spool_drops_counts_and_says_so_once(start, small, section, store, caplog):
    store.root.mkdir()
    (store.root / "logs").touch()
    gateway = start(small, production_log={**section, "spool_bytes": 2_000})
    for _ in range(12):
        assert gateway.chat().status_code == 200
        time.sleep(0.06)
    wait_for(lambda: value(gateway, "rows_total") + value(gateway, "dropped_total") == 12)
    dropped = value(gateway, 'dropped_total{reason="disk"}')
    assert 0 < dropped < 12
    assert value(gateway, "spool_bytes") <= 2_000
    (store.root / "logs").unlink()
    wait_for(lambda: value(gateway, "uploaded_rows_total") == 12 - dropped)
    gateway.stop()
    assert len([r for r in caplog.records if "requests are dropped" in r.getMessage()]) == 1


def test_a_row_that_cannot_be_made_costs_itself_only(start, small, section, store, monkeypatch):
    made, read = ProductionLog._row, production_log.unscrubbed

    def broken(self, entry, texts):
        if texts[0][0]["content"] == "poison":
            raise RuntimeError("a row that no one foresaw")
        return made(self, entry, texts)

    def unreadable(call, attempt):
        if call.request.body["messages"][0]["content"] == "unreadable":
            raise RuntimeError("a request that no one foresaw")
        return read(call, attempt)

    monkeypatch.setattr(ProductionLog, "_row", broken)
    monkeypatch.setattr(production_log, "unscrubbed", unreadable)
    gateway = start(small, production_log={**section, "flush_interval_s": 0.5})
    for text in ("one", "poison", "unreadable", "two"):
        gateway.chat(messages=user(text))
    wait_for(lambda: value(gateway, 'dropped_total{reason="row"}') == 2)
    gateway.stop()
    assert [row["messages"][0]["content"] for row in rows_of(store)] == ["one", "two"]


@pytest.mark.parametrize("bound", [{"queue_limit": 2}, {"queue_bytes": 3_000}])
def test_a_full_queue_drops_and_counts(start, small, section, store, bound):
    gateway = start(small, production_log={**section, "flush_interval_s": 60, **bound})
    assert [gateway.chat().status_code for _ in range(6)] == [200] * 6
    dropped = value(gateway, 'dropped_total{reason="memory"}')
    gateway.stop()
    assert 0 < dropped < 6
    assert len(rows_of(store)) == 6 - dropped


def test_nothing_is_logged_without_a_scrubber_a_store_or_a_language(
    write_config, start, small, section
):
    start(small)
    path = write_config([upstream_entry(small)], production_log=section)
    with pytest.raises(UserError, match="no scrubber"):
        create_app(load_config(path))
    for fields, match in (
        ({"store": "ftp://x"}, "is not a store"),
        ({"languages": ["tlh"]}, "not found in tlh"),
    ):
        with pytest.raises(UserError, match=match):
            start(small, production_log={**section, **fields})


def test_without_the_model_the_gateway_does_not_start(section, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    fetch_entity_model.cache_clear()
    log = ProductionLogConfig.model_validate(section)
    with pytest.raises(RetryableError, match=r"production_log: can't download.*pii_model: false"):
        _scrubber_for(log)
    patterns = _scrubber_for(log.model_copy(update={"pii_model": False}))
    (turns, counts), *_ = patterns([user("I am Anna Smith, a@b.com")])
    assert (turns[0]["content"], dict(counts)) == (
        "I am Anna Smith, [EMAIL_ADDRESS]",
        {"EMAIL_ADDRESS": 1},
    )


def test_no_model_and_no_trainer_is_imported_for_it():
    code = (
        "import sys, tuneline.serving.gateway.logs.production_log\n"
        "from tuneline.cli.serving import _scrubber_for\n"
        "from tuneline.serving.gateway.config import ProductionLogConfig\n"
        "log = ProductionLogConfig(store='file:///s', spool='/s', languages=('en', 'de'))\n"
        "_scrubber_for(log)([[{'role': 'user', 'content': 'Anna Smith, a@b.com'}]])\n"
        "heavy = 'torch transformers spacy presidio_analyzer pandas sklearn'.split()\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert call(sys.executable, "-c", code, check=True).stdout.strip() == "[]"


DAY = date(2026, 11, 26)


def line(number: int) -> bytes:
    return b'{"request_id":"req-%d","time":"2026-11-26T00:00:00.000+00:00"}\n' % number


@pytest.fixture
def open_spool(tmp_path):
    opened = []

    def make(**fields) -> Spool:
        settings = {"limit_bytes": 10_000, "part_rows": 100, "part_seconds": 3600, **fields}
        opened.append(Spool(tmp_path / "spool", **settings))
        return opened[-1]

    return make


@pytest.fixture
def metrics():
    return Metrics()


def test_a_part_is_sealed_by_rows_by_age_and_at_the_end(open_spool):
    spool = open_spool(part_rows=2)
    spool.append("m", DAY, [line(1)])
    assert spool.sealed() == []
    spool.append("m", DAY, [line(2)])
    (full,) = spool.sealed()
    assert full.read_bytes() == line(1) + line(2)
    assert full.parts[-3:-1] == ("m", "2026-11-26")
    # Models and days have separate parts.
    places = [("m", DAY), ("b", DAY), ("m", date(2026, 11, 27))]
    for model, day in places:
        spool.append(model, day, [line(3)])
    spool.seal()
    assert spool.sealed() == [full]
    spool._part_seconds = 1e-9
    spool.seal()
    assert {path.parts[-3:-1] for path in spool.sealed()[1:]} == {(m, str(d)) for m, d in places}
    spool.append("m", DAY, [line(4)])
    spool.close()
    assert len(spool.sealed()) == 5
    assert spool.size == 6 * len(line(1))


def test_the_limit_counts_what_an_earlier_gateway_left(open_spool):
    first = open_spool()
    first.append("m", DAY, [line(1)])
    first.close()
    second = open_spool(limit_bytes=2 * len(line(1)) + 5)
    second.append("m", DAY, [line(2)])
    with pytest.raises(SpoolFull):
        second.append("m", DAY, [line(3)])
    second.remove(second.sealed()[0])
    second.append("m", DAY, [line(3)])
    assert second.size == 2 * len(line(1))


def test_a_write_that_fails_half_way_leaves_nothing_of_it(open_spool, monkeypatch):
    spool = open_spool()
    spool.append("m", DAY, [line(1)])
    real = os.write

    def half_a_write_then_a_full_disk(file, data):
        if len(data) <= len(line(1)):
            raise OSError(28, "No space left on device")
        return real(file, data[: len(line(1)) + 3])

    monkeypatch.setattr(os, "write", half_a_write_then_a_full_disk)
    with pytest.raises(OSError, match="No space"):
        spool.append("m", DAY, [line(2), line(3)])
    monkeypatch.undo()
    spool.append("m", DAY, [line(4)])
    spool.close()
    assert spool.sealed()[0].read_bytes() == line(1) + line(4)


def test_a_folder_that_cannot_be_used_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"can't be used.*production_log\.spool"):
        Spool(tmp_path / "file" / "spool", limit_bytes=1, part_rows=1, part_seconds=1)


def test_an_upload_that_was_cut_off_is_repeated_under_its_name(open_spool, tmp_path, metrics):
    store = FileStore(tmp_path / "store")

    class Killed(Spool):
        def remove(self, path):
            raise KeyboardInterrupt

    first = Killed(tmp_path / "spool", limit_bytes=10_000, part_rows=2, part_seconds=1)
    first.append("m", DAY, [line(1), line(2)])
    with pytest.raises(KeyboardInterrupt):
        Uploader(first, store, metrics)._upload_sealed()
    (before,) = store.keys("logs")
    first.close()
    second = open_spool()
    uploader = Uploader(second, store, metrics)
    uploader.start()
    uploader.close(5)
    assert list(store.keys("logs")) == [before]
    assert second.size == 0
    assert [path.name for path in (tmp_path / "spool").rglob("*")] == [".lock"]


def test_a_torn_line_is_dropped_and_counted(open_spool, tmp_path, metrics):
    spool = open_spool()
    spool.append("m", DAY, [line(1), line(2)])
    spool.close()
    (path,) = spool.sealed()
    path.write_bytes(path.read_bytes() + line(3)[:20])
    (tmp_path / "spool" / "part.scratch").write_bytes(b"PAR1 half a file")
    store = FileStore(tmp_path / "store")
    again = open_spool()
    assert not (tmp_path / "spool" / "part.scratch").exists()
    Uploader(again, store, metrics)._upload_sealed()
    assert 'tuneline_gateway_production_log_dropped_total{reason="torn"} 1' in metrics.text()
    assert "tuneline_gateway_production_log_uploaded_rows_total 2" in metrics.text()


def test_the_wait_after_failures_grows_to_a_minute(open_spool, tmp_path, metrics, monkeypatch):
    spool = open_spool(part_rows=1)
    spool.append("m", DAY, [line(1)])

    class Down(FileStore):
        def put_file(self, key, path, *, once=False):
            raise RetryableError("down")

    uploader = Uploader(spool, Down(tmp_path / "store"), metrics)
    monkeypatch.setattr("tuneline.serving.gateway.logs.spool.time.monotonic", lambda: 0.0)
    waits = []
    for _ in range(8):
        uploader._upload_sealed()
        waits.append(uploader._not_before)
    for number, wait in enumerate(waits):
        assert min(60, 2**number) / 2 <= wait <= min(60, 2**number)
    assert "tuneline_gateway_production_log_upload_failures_total 8" in metrics.text()
    assert len(spool.sealed()) == 1
