"""The gateway as a process: its end, its log, a kill under load, and changes of its file."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tests.lab.steady_load import SteadyLoad
from tests.lab.waiting import wait_for

from tuneline.artifacts.request_log import days, read_day
from tuneline.errors import UserError
from tuneline.serving.gateway.accounts.keys import KeyLimits, add_key
from tuneline.serving.gateway.app.server import fingerprint, run_gateway
from tuneline.serving.gateway.ledger.reports import rows_between, usage_by_key
from tuneline.serving.gateway.process import GatewayProcess
from tuneline.serving.processes import free_port
from tuneline.store import Store, open_store

from .conftest import CHAT, Process, ask, upstream_entry
from .test_ledger import sums

COMMAND = [sys.executable, "-m", "tuneline.cli", "gateway", "--config"]


def test_sigterm_lets_requests_finish_while_the_probe_says_no(launch, small):
    process = launch(small, drain={"delay_s": 1.5, "timeout_s": 30})
    small.words, small.token_delay_s = 100, 0.03
    result = {}
    client = threading.Thread(target=lambda: result.update(text=process.ask(stream=True).text))
    client.start()
    wait_for(small.requests)
    process.signal(signal.SIGTERM)
    wait_for(lambda: process.probe("ready") == 503)

    def asked_anew() -> httpx.Response:
        url, body = f"{process.base_url}/v1/{CHAT}", ask(max_tokens=1)
        return httpx.post(url, json=body, headers=process.headers)

    # Until load balancers have noticed, new requests are still served.
    assert asked_anew().status_code == 200
    wait_for(lambda: asked_anew().status_code == 503, pause=0.1)
    assert asked_anew().json()["error"]["code"] == "shutting_down"
    assert (process.probe("ready"), process.probe("live")) == (503, 200)
    client.join(30)
    assert result["text"].count("small-") == 100
    assert result["text"].endswith("data: [DONE]\n\n")
    process.end()
    (used,) = usage_by_key(process.ledger)
    assert used.completion_tokens == 100 + used.requests - 1
    assert used.estimated_attempts == 0


def test_what_outlasts_the_drain_is_cut_off_and_still_billed(launch, small):
    process = launch(small, drain={"timeout_s": 0.3})
    small.words, small.token_delay_s = 1000, 0.03
    with process.client.stream("POST", f"/v1/{CHAT}", json=ask(stream=True)) as response:
        chunks = response.iter_raw()
        next(chunks)
        process.signal(signal.SIGTERM)
        with pytest.raises(httpx.RemoteProtocolError):
            for _ in chunks:
                pass
    process.end()
    (used,) = usage_by_key(process.ledger)
    assert used.estimated_attempts == 1
    assert used.completion_tokens > 0


def test_answers_do_not_wait_and_nothing_secret_is_written(launch, small, tmp_path):
    process = launch(small)
    body = {"messages": [{"role": "user", "content": "the-prompt"}]}
    seconds = []
    for _ in range(30):
        began = time.perf_counter()
        assert process.ask(**body).status_code == 200
        seconds.append(time.perf_counter() - began)
    # With Nagle's algorithm on, each takes 40 ms, but for the first of a connection.
    assert min(seconds[5:]) < 0.035
    wrong = {"authorization": "Bearer tl-a-wrong-key"}
    assert httpx.post(f"{process.base_url}/v1/{CHAT}", headers=wrong).status_code == 401
    small.mode = "error"
    assert process.ask(**body).status_code == 502
    process.end()
    log = process.read_log()
    assert "key=tester" in log
    assert "status=401" in log
    secrets = [process.key, "tl-a-wrong-key", "the-prompt"]
    for file in tmp_path.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not [secret for secret in secrets if secret.encode() in content], file


@pytest.mark.parametrize("reader", ["full", "gone", "stuck"])
def test_a_log_that_nobody_takes_does_not_end_the_gateway(tmp_path, write_config, small, reader):
    key = add_key(tmp_path / "keys.json", "tester")
    log = {"store": f"file://{tmp_path}/store", "spool": "spool"}
    settings = {"port": free_port(), "log": {"format": "json"}, "production_log": log}
    config = write_config([upstream_entry(small, ping=False)], **settings)
    read, stderr = os.pipe()
    if reader == "full":
        stderr = os.open("/dev/full", os.O_WRONLY)
    elif reader == "gone":
        os.close(read)
    process = subprocess.Popen([*COMMAND, str(config)], stderr=stderr)
    os.close(stderr)
    url = f"http://127.0.0.1:{settings['port']}"
    headers = {"authorization": f"Bearer {key}"}

    def listens(client: httpx.Client) -> bool:
        try:
            return client.get("/v1/health/live").is_success
        except httpx.TransportError:
            return False

    try:
        with httpx.Client(base_url=url, headers=headers, timeout=20) as client:
            wait_for(lambda: listens(client))
            # More than a pipe holds.
            for _ in range(300):
                assert client.post(f"/v1/{CHAT}", json=ask()).status_code == 200
            lost = client.get("/metrics").text.split("\ntuneline_gateway_log_lost_total ")[1:]
            assert reader == "stuck" or float(lost[0].split()[0]) > 0
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    finally:
        process.kill()
    (used,) = usage_by_key(tmp_path / "usage.db")
    assert used.requests == 300
    parts = (tmp_path / "store").rglob("*.parquet")
    assert sum(pq.read_metadata(part).num_rows for part in parts) == 300


def test_what_keeps_it_from_starting_is_one_sentence(tmp_path, write_config, small):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = write_config([upstream_entry(small)], port=port)
        with pytest.raises(UserError, match=r"keys\.json: no such keys file"):
            run_gateway(config)
        add_key(tmp_path / "keys.json", "tester")
        with pytest.raises(UserError, match=f"127.0.0.1:{port}"):
            run_gateway(config)


def logged_in(store: Store) -> list[str]:
    found = [read_day(store, "support", day) for day in days(store, "support")]
    return [request for table in found for request in table["request_id"].to_pylist()]


def test_a_kill_loses_the_last_second_at_most(tmp_path, small):
    """Of ledger, sums and production log; what is settled stays, and nothing is booked twice."""
    store = open_store((tmp_path / "store").as_uri())
    log = {"store": store.uri, "spool": "spool", "flush_interval_s": 0.3, "part_seconds": 0.5}
    settings = {"production_log": {**log, "pii_model": False}}
    process = Process(tmp_path / "g", upstream_entry(small, ping=False), **settings)
    limits = KeyLimits(tokens_per_month=10**9)
    key = add_key(tmp_path / "g" / "keys.json", "alice", limits=limits)
    process.headers = {"authorization": f"Bearer {key}"}
    answered, cut, due, before = [], 0, set(), []
    for seconds in (2.1, 2.7):
        process.start()
        assert rows_between(process.ledger)[: len(before)] == before
        # The process that scrubs is up once its first row is in the store.
        first = process.ask().headers["x-request-id"]
        wait_for(lambda row=first: row in logged_in(store))
        url = process.base_url
        with (
            SteadyLoad(url, key, "support", 25) as whole,
            SteadyLoad(url, key, "support", 25, stream=True) as streams,
        ):
            time.sleep(seconds)
            killed = time.monotonic()
            process.kill()
        load = [*whole.answers, *streams.answers]
        assert {one.status for one in load if one.request_id} == {200}
        cut += sum(one.status != 200 for one in load)
        answered += [first, *(one.request_id for one in load)]
        due |= {one.request_id for one in load if one.ended < killed - 1.0}
        before = rows_between(process.ledger)
    assert len(due) > 50
    process.start()
    process.end()
    rows = rows_between(process.ledger)
    assert rows == before
    billed = {row.request_id: row for row in rows}
    assert len(billed) == len(rows)
    assert {billed[request].completion_tokens for request in due} == {5}
    assert sums(process.ledger) == {
        "alice": sum(r.prompt_tokens + r.completion_tokens for r in rows)
    }
    logged = logged_in(store)
    assert due <= set(logged)
    assert len(set(logged)) == len(logged)
    # A kill may come between the log and the answer, but nothing is logged twice or invented.
    assert len(set(logged) - set(answered)) <= cut
    # No reader had to remove a copy: none was written.
    parts = [pq.read_table(path) for path in (tmp_path / "store" / "logs").rglob("*.parquet")]
    assert pa.concat_tables(parts).num_rows == len(logged)
    spool = [path for path in (tmp_path / "g" / "spool").rglob("*") if path.is_file()]
    assert [path.name for path in spool] == [".lock"]


ASKED = [{"role": "user", "content": "a b c"}]
QUICK = {"ping_interval_s": 0.2, "ping_timeout_s": 10.0, "stale_after_s": 15.0}


class Reloading:
    """A gateway process over the configuration that `write` wrote last."""

    def __init__(self, folder, *servers):
        self.gateway = GatewayProcess(
            folder,
            upstreams=[upstream_entry(server) for server in servers],
            models=[{"id": "support", "chain": [server.name for server in servers]}],
            settings={"readiness": {**QUICK, "warmup_timeout_s": 10.0}},
        )
        self.path = folder / "gateway.yaml"
        self.document = json.loads(self.path.read_text())

    def write(self, text):
        fresh = self.path.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.path)

    def offer(self, **changes):
        """Write the file with changes, ask for a reload, and return how it ended."""
        self.write(json.dumps({**self.document, **changes}))
        return self.reload()

    def reload(self):
        self.gateway.signal(signal.SIGHUP)
        return self.settled()

    def ready(self):
        return self.gateway.get("/v1/health/ready").json()

    def settled(self):
        """`taken` or `refused`, once the gateway has looked at the file."""
        wanted = fingerprint(self.path)

        def outcome():
            state = self.ready()["reload"]
            return next((key for key in ("taken", "refused") if state[key] == wanted), None)

        # On a busy machine a warm-up takes its time.
        return wait_for(outcome)

    def log_with(self, words):
        """The log once it holds some words; its lines are written out ten times a second."""
        wait_for(lambda: words in self.gateway.read_log())
        return self.gateway.read_log()

    def ask(self):
        return self.gateway.ask("support", ASKED, max_tokens=8)


@pytest.fixture
def reloading(tmp_path, small):
    made = Reloading(tmp_path / "gateway", small)
    with made.gateway:
        wait_for(lambda: made.ready()["upstreams"] == {"small": "ready"})
        yield made


def other(server, **fields):
    return {
        "upstreams": [upstream_entry(server, **fields)],
        "models": [{"id": "support", "chain": [server.name]}],
    }


def test_requests_go_to_the_new_upstream_and_streams_end_on_theirs(reloading, small, large):
    small.words, small.token_delay_s = 20, 0.1
    with reloading.gateway.stream("support", ASKED, max_tokens=20) as (_, chunks):
        next(chunks)
        assert reloading.offer(**other(large)) == "taken"
        assert reloading.ready()["reload"]["retiring"] == 1
        assert reloading.ask().served_by == "large"
        assert "small-19" in json.dumps(list(chunks))
    wait_for(lambda: reloading.ready()["reload"]["retiring"] == 0)
    # It proved itself before any request came.
    assert any(str(body["messages"][0]["content"]).startswith("warm") for body in large.pings())
    assert 'reloads_total{outcome="taken"} 1' in reloading.gateway.get("/metrics").text


def test_a_wrong_file_is_refused_and_the_old_one_stays(reloading, large, tmp_path):
    taken = reloading.ready()["reload"]["taken"]
    ledger = {"ledger": {"path": str(tmp_path / "other.sqlite")}}
    for text, why in (
        ("upstreams: [", "gateway.yaml"),
        ("port: many", "`port`"),
        (json.dumps({**reloading.document, **ledger}), "`ledger` can't change while the gateway"),
    ):
        reloading.write(text)
        assert reloading.reload() == "refused"
        assert reloading.ready()["reload"]["taken"] == taken
        assert "Traceback" not in reloading.log_with(why)
    assert reloading.ask().served_by == "small"
    # Nor is one taken whose upstream does not answer, until it does.
    large.mode = "error"
    assert reloading.offer(**other(large)) == "refused"
    assert reloading.log_with("while the gateway is ready as it is")
    assert reloading.ask().served_by == "small"
    large.mode = "ok"
    reloading.gateway.signal(signal.SIGHUP)
    wait_for(lambda: reloading.ready()["reload"]["refused"] is None)
    assert reloading.ask().served_by == "large"


def test_an_unchanged_upstream_keeps_its_proof(reloading, small):
    warmed = sum("warm" in str(body) for body in small.pings())
    assert reloading.offer(max_in_flight=7) == "taken"
    assert reloading.ready()["upstreams"] == {"small": "ready"}
    assert sum("warm" in str(body) for body in small.pings()) == warmed


def test_what_is_released_but_not_served_shows(reloading, small):
    models = [{"id": "support", "chain": ["small"], "released": "b"}]
    for version, behind in (("a", {"support": "b"}), ("b", {})):
        reloading.offer(upstreams=[upstream_entry(small, version=version)], models=models)
        assert reloading.ready()["behind"] == behind
        series = f'tuneline_gateway_release_behind{{model="support"}} {len(behind)}'
        assert series in reloading.gateway.get("/metrics").text


def test_a_switch_under_load_drops_no_request(reloading, small, large):
    """50 requests a second, two switches, the old engine stopped after each."""
    small.answer_delay_s = large.answer_delay_s = 0.2
    gateway = reloading.gateway
    with SteadyLoad(gateway.base_url, gateway.keys["trial"], "support", 50) as load:
        time.sleep(1)
        for new, old in ((large, small), (small, large)):
            new.start()
            assert reloading.offer(**other(new)) == "taken"
            wait_for(lambda: reloading.ready()["reload"]["retiring"] == 0)
            old.stop()
            time.sleep(1)
    small.start()
    large.start()
    assert len(load.answers) > 60
    assert {answer.status for answer in load.answers} == {200}
    assert {answer.attempts for answer in load.answers} == {"small", "large"}


def test_watching_waits_for_the_file_and_follows_it(tmp_path, small, large):
    made = Reloading(tmp_path / "gateway", small)
    made.path.unlink()
    made.gateway._command.append("--watch")
    made.gateway.launch()
    wait_for(lambda: "waiting for" in made.gateway.read_log())
    made.write(yaml.safe_dump({**made.document, "upstreams": [], "models": []}))
    wait_for(lambda: made.gateway.waiting_for() is None)
    try:
        assert made.ready()["message"] == "no model is served yet"
        assert made.ask().status == 404
        made.write(json.dumps({**made.document, **other(large)}))
        made.settled()
        wait_for(lambda: made.ready()["status"] == "ready")
        assert made.ask().served_by == "large"
    finally:
        made.gateway.stop()


def test_a_canary_answers_its_keys_from_the_first_request_on_and_both_arms_are_counted(
    reloading, small, large
):
    # Its warm-up takes a second; until then it would be passed over.
    large.answer_delay_s = 0.5
    canary = {"upstream": "large", "share": 0.999999}
    models = [{"id": "support", "chain": ["small"], "canary": canary}]
    upstreams = [*map(upstream_entry, (small, large))]
    assert reloading.offer(upstreams=upstreams, models=models) == "taken"
    assert {reloading.ask().served_by for _ in range(3)} == {"large"}
    large.mode = "error"
    left = reloading.ask()
    assert (left.served_by, left.fallback_reason) == ("small", "upstream_5xx")
    arms = reloading.ready()["canary"]["large"]
    assert arms["candidate"]["requests"] == sum(arms["candidate"]["seconds"]) == 4
    assert arms["candidate"]["hits"]["fallbacks"] == 1
    assert arms["released"]["requests"] == 0


@pytest.mark.parametrize(
    ("own", "served_by"), [({"min_mean_logprob": -1.0}, "large"), (None, "small")]
)
def test_a_candidate_has_its_own_limits(reloading, small, large, own, served_by):
    """Its answers are less sure than the limit of the chain allows, and surer than its own."""
    large.logprob = -0.5
    canary = {"upstream": "large", "share": 0.999999, "low_confidence": own}
    model = {"id": "support", "chain": ["small", "again"], "canary": canary}
    model["low_confidence"] = {"min_mean_logprob": -0.2}
    upstreams = [*map(upstream_entry, (small, large)), upstream_entry(small, name="again")]
    assert reloading.offer(upstreams=upstreams, models=[model]) == "taken"
    assert reloading.ask().served_by == served_by
    hits = reloading.ready()["canary"]["large"]["candidate"]["hits"]
    assert hits["answers of low confidence"] == (own is None)
