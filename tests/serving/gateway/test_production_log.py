import json
import logging
import os
import stat
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import boto3
import httpx
import pyarrow.parquet as pq
import pytest
import yaml
from moto.server import ThreadedMotoServer
from tests.lab import scrubbers
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
from tuneline.serving.processes import free_port
from tuneline.store import open_store

from .conftest import ask, upstream_entry

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


def test_without_the_section_nothing_of_a_prompt_is_kept(start, small, tmp_path):
    gateway = start(small)
    gateway.chat(messages=[{"role": "user", "content": "my card is 4111-1111-1111-1111"}])
    gateway.stop()
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or b"4111" not in file.read_bytes()


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
    return {
        "store": store.uri,
        "spool": "spool",
        "flush_interval_s": 0.05,
        "part_seconds": 0.2,
    }


def today() -> datetime:
    return datetime.now(UTC)


def rows_of(store, model: str = "support") -> list[dict]:
    return [row for day in days(store, model) for row in read_day(store, model, day).to_pylist()]


def value(gateway, name: str) -> float:
    text = gateway.client.get("/metrics").text
    return sum(float(s.split()[-1]) for s in text.splitlines() if s.startswith(f"{PREFIX}_{name}"))


def user(text: object) -> list[dict]:
    return [{"role": "user", "content": text}]


def test_a_whole_answer_is_a_row_of_the_day(start, small, section, store):
    entry = upstream_entry(small, version="run-7")
    gateway = start(entry, production_log=section)
    began = today()
    messages = [{"role": "system", "content": "Be kind."}, *user("Where is my parcel?")]
    response = gateway.chat(messages=messages)
    gateway.stop()
    assert days(store, "support") == [began.date()]
    (row,) = rows_of(store)
    assert row["request_id"] == response.headers["x-request-id"]
    # The column has milliseconds.
    assert began - timedelta(milliseconds=1) <= row["time"] <= today()
    assert (row["key"], row["model"], row["model_version"]) == ("tester-0", "support", "run-7")
    assert row["messages"] == messages
    assert row["answer"] == response.json()["choices"][0]["message"]["content"]
    assert (row["served_by"], row["fallback_reason"]) == ("small", None)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (6, 5)
    assert (row["finish_reason"], row["status"]) == ("stop", "ok")
    assert (row["sample_rate"], row["redactions"]) == (1.0, [])
    assert row["latency_ms"] > 0
    assert (row["ttft_ms"], row["confidence"]) == (None, None)


def test_streams_are_rows_when_they_end_or_break(start, small, section, store):
    gateway = start(small, production_log=section)
    ended, _, _ = gateway.stream()
    small.mode = "die_after"
    broken, _, done = gateway.stream()
    assert not done
    gateway.stop()
    rows = {row["request_id"]: row for row in rows_of(store)}
    whole = rows[ended.headers["x-request-id"]]
    assert (whole["status"], whole["finish_reason"]) == ("ok", "stop")
    assert whole["answer"] == "".join(f"small-{i} " for i in range(5))
    assert 0 < whole["ttft_ms"] <= whole["latency_ms"]
    cut = rows[broken.headers["x-request-id"]]
    assert (cut["status"], cut["finish_reason"]) == ("died_midstream", None)
    assert cut["answer"] == "small-0 small-1 "


def test_a_client_that_leaves_is_a_row(start, small, section, store):
    small.words, small.token_delay_s = 200, 0.02
    gateway = start(small, production_log=section)
    with gateway.client.stream("POST", "/v1/chat/completions", json=ask(stream=True)) as response:
        next(response.iter_raw())
    small.mode = "hang"
    with pytest.raises(httpx.ReadTimeout):
        gateway.client.post("/v1/chat/completions", json=ask(), timeout=0.3)
    wait_for(lambda: value(gateway, "rows_total") == 2)
    gateway.stop()
    rows = rows_of(store)
    assert [row["status"] for row in rows] == ["client_aborted", "client_aborted"]
    assert [row["served_by"] for row in rows] == ["small", None]


def test_a_fallback_states_who_answered_and_why(start, small, large, section, store):
    gateway = start(small, large, production_log=section)
    gateway.wait_all_ready()
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


def test_the_confidence_of_a_judged_answer_is_kept(start, small, large, section, store):
    small.logprob = -0.5
    limits = {"low_confidence": {"min_mean_logprob": -1.0}}
    gateway = start(small, large, model=limits, production_log=section)
    gateway.chat()
    gateway.stop()
    assert [row["confidence"] for row in rows_of(store)] == [-0.5]


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


def test_files_are_the_gateways_own(start, small, section, tmp_path):
    gateway = start(small, production_log={**section, "part_seconds": 3600})
    gateway.chat()
    (path,) = wait_for(lambda: list((tmp_path / "spool").rglob("*.jsonl")))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700


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
    headers = {"content-type": "application/json"}
    assert gateway.client.post("/v1/chat/completions", content=body, headers=headers).is_success
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


def test_a_larger_sample_holds_the_smaller_one():
    ids = [f"req-{number}" for number in range(10_000)]
    small, large = ({i for i in ids if is_sampled(i, rate)} for rate in (0.1, 0.5))
    assert small < large
    # Four standard deviations.
    assert abs(len(small) - 1000) < 120
    assert abs(len(large) - 5000) < 200
    assert not any(is_sampled(i, 0.0) for i in ids)
    assert all(is_sampled(i, 1.0) for i in ids)


def test_requests_do_not_notice_a_store_that_is_down(start, small, section, store, caplog):
    logs = store.root / "logs"
    store.root.mkdir()
    # The folder cannot be made where a file is.
    logs.touch()
    gateway = start(small, production_log=section)
    assert [gateway.chat().status_code for _ in range(5)] == [200] * 5
    wait_for(lambda: value(gateway, "upload_failures_total") >= 2)
    assert gateway.chat().status_code == 200
    assert gateway.client.get("/v1/health/ready").status_code == 200
    assert value(gateway, "uploaded_rows_total") == 0
    assert value(gateway, "spool_bytes") > 0
    logs.unlink()
    wait_for(lambda: value(gateway, "uploaded_rows_total") == 6, 20)
    # A part leaves the spool after its rows are counted.
    wait_for(lambda: value(gateway, "spool_bytes") == 0)
    gateway.stop()
    assert len(rows_of(store)) == 6
    told = [r for r in caplog.records if "production log: no upload" in r.getMessage()]
    assert len(told) == 1


def test_a_bucket_that_comes_later_gets_everything(start, small, section, monkeypatch):
    port = free_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    gateway = start(small, production_log={**section, "store": "s3://production/main"})
    assert [gateway.chat().status_code for _ in range(3)] == [200] * 3
    wait_for(lambda: value(gateway, "upload_failures_total") >= 1, 40)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port)
    server.start()
    try:
        boto3.session.Session().client("s3").create_bucket(Bucket="production")
        wait_for(lambda: value(gateway, "uploaded_rows_total") == 3, 60)
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
    wait_for(lambda: value(gateway, "uploaded_rows_total") == 12 - dropped, 20)
    gateway.stop()
    assert len([r for r in caplog.records if "requests are dropped" in r.getMessage()]) == 1


def test_a_stop_while_the_store_is_down_leaves_the_rows_to_the_next_start(
    start, small, section, store
):
    store.root.mkdir()
    (store.root / "logs").touch()
    first = start(small, production_log=section)
    first.chat()
    first.stop()
    (store.root / "logs").unlink()
    second = start(small, production_log=section)
    wait_for(lambda: value(second, "uploaded_rows_total") == 1)
    second.stop()
    assert len(rows_of(store)) == 1


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


def test_a_spool_has_one_gateway(start, small, section):
    start(small, production_log=section)
    with pytest.raises(UserError, match="another gateway uses this spool"):
        start(small, production_log=section)


def test_nothing_is_logged_without_a_scrubber(write_config, small, section, start):
    start(small)
    path = write_config([upstream_entry(small)], production_log=section)
    with pytest.raises(UserError, match="no scrubber"):
        create_app(load_config(path))


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
    include = Path(__file__).parents[3] / "include"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(include)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"store": "ftp://x"}, "is not a store"),
        ({"languages": ["tlh"]}, "not found in tlh"),
        ({"sample_rate": 1.5}, r"production_log\.sample_rate"),
        ({"part_seconds": 0}, r"production_log\.part_seconds"),
    ],
)
def test_wrong_settings_stop_the_start(start, small, section, fields, match):
    with pytest.raises(UserError, match=match):
        start(small, production_log={**section, **fields})


def test_many_requests_at_once_are_each_one_row(start, small, section, store):
    gateway = start(small, production_log={**section, "part_rows": 7})
    ids = [gateway.chat().headers["x-request-id"]]
    wait_for(lambda: value(gateway, 'rows_total{model="support"}') == 1)

    def several() -> None:
        with httpx.Client(headers=gateway.client.headers, timeout=20) as client:
            for _ in range(20):
                answer = client.post(f"{gateway.url}/v1/chat/completions", json=ask())
                ids.append(answer.headers["x-request-id"])

    threads = [threading.Thread(target=several) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gateway.stop()
    assert sorted(row["request_id"] for row in rows_of(store)) == sorted(ids)
    assert len(ids) == 81
    parts = list((store.root / "logs").rglob("*.parquet"))
    assert sum(pq.read_metadata(part).num_rows for part in parts) == 81
    assert len(parts) > 1


def test_the_example_of_the_manual_is_valid(tmp_path):
    text = (Path(__file__).parents[3] / "docs" / "gateway.md").read_text()
    example = next(part for part in text.split("```yaml\n")[1:] if "production_log:" in part)
    (tmp_path / "g.yaml").write_text(
        yaml.safe_dump(
            {
                "keys_file": "keys.json",
                "ledger": {"path": "u.sqlite"},
                "upstreams": [{"name": "a", "base_url": "http://127.0.0.1:1/v1", "model": "m"}],
                "models": [{"id": "m", "chain": ["a"]}],
                "production_log": yaml.safe_load(example.split("```")[0])["production_log"],
            }
        )
    )
    config = load_config(tmp_path / "g.yaml").production_log
    assert config.spool == tmp_path / "spool"
