"""`tuneline follow` beside a real gateway: releases become served, and nothing is dropped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import httpx
import psutil
import pytest
from tests.lab import fake_engine
from tests.lab.canaries import release
from tests.lab.releases import flip, forge, hostile, release_apart
from tests.lab.releases import release as ship
from tests.lab.signatures import FORGERIES, Writer, key_pair
from tests.lab.steady_load import SteadyLoad
from tests.lab.waiting import wait_for

from tuneline.artifacts.release_log import Withdrawn
from tuneline.artifacts.releases import read_release
from tuneline.errors import UserError
from tuneline.files import file_state
from tuneline.governance.release.pointer import read_pointer, record
from tuneline.machine.child_environment import child_environment
from tuneline.models.base_model import digest_of
from tuneline.serving.engines.engine import hash_files
from tuneline.serving.following.engines import EngineProcess, take_over
from tuneline.serving.following.release import LoadedWeights
from tuneline.serving.following.status import read_status
from tuneline.serving.following.targets import EngineUnit
from tuneline.serving.gateway.accounts.keys import add_key
from tuneline.serving.gateway.ledger.reports import rows_between
from tuneline.serving.processes import DetachedProcess, free_port
from tuneline.store import open_store

CLI = [sys.executable, "-m", "tuneline.cli"]
QUICK = {"ping_interval_s": 0.2, "ping_timeout_s": 10.0, "stale_after_s": 15.0}


@dataclass
class Site:
    """A store, a gateway and a follower, with engines that need no model."""

    folder: Path
    uri: str = ""

    def __post_init__(self):
        self.store = open_store(self.uri or (self.folder / "store").as_uri())
        self.engines = fake_engine.install(self.folder / "bin")
        self.port = free_port()
        self.key = add_key(self.folder / "keys.json", "tester")
        self.processes = {}
        self.set()

    def set(self, **settings):
        document = {
            "port": self.port,
            "keys_file": "keys.json",
            "ledger": {"path": "usage.sqlite"},
            "readiness": QUICK,
            **settings,
        }
        (self.folder / "settings.yaml").write_text(json.dumps(document))

    def release(self, version, name="a", settings=None):
        release(self.store, name, version, settings=settings)

    def start(self, what, *command):
        with (self.folder / f"{what}.log").open("ab") as log:
            environment = child_environment(PYTHONUNBUFFERED="1")
            self.processes[what] = subprocess.Popen(
                [*CLI, *command], stdout=log, stderr=log, env=environment
            )

    def follow(self, *options, real=False):
        fake = () if real else ("--engine", f"llama_cpp={self.engines}")
        self.start(
            "follower",
            *("follow", "--store", self.store.uri, "--settings", self.folder / "settings.yaml"),
            *("--folder", self.folder / "state", "--every", "0.2"),
            *(*fake, *options),
        )

    def serve(self):
        self.start(
            "gateway", "gateway", "--watch", "--config", self.folder / "state" / "gateway.yaml"
        )

    def stop(self, what):
        process = self.processes.pop(what)
        process.terminate()
        process.wait(60)

    def log(self, what="follower"):
        return (self.folder / f"{what}.log").read_text()

    def ask(self, model="a"):
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
        return httpx.post(
            f"http://127.0.0.1:{self.port}/v1/chat/completions",
            json=body,
            headers={"authorization": f"Bearer {self.key}"},
            timeout=30,
        )

    def stated(self, model="a"):
        """Version and weights of a model, as the gateway's list states them."""
        headers = {"authorization": f"Bearer {self.key}"}
        url = f"http://127.0.0.1:{self.port}/v1/models/{model}"
        entry = httpx.get(url, headers=headers).json()
        return entry["version"], entry["weights_sha256"]

    def answered_by(self, model="a"):
        try:
            answer = self.ask(model)
        except httpx.TransportError:
            return None
        return answer.headers.get("x-tuneline-served-by") if answer.status_code == 200 else None

    def wait_served(self, version, name="a"):
        wait_for(lambda: self.answered_by(name) == f"{name}-{version}", f"{name} {version}")

    def status(self):
        return read_status(self.folder / "state")

    def pids(self):
        records = json.loads((self.folder / "state" / "engines.json").read_text())
        return {record["releases"][0][1]: record["pid"] for record in records}

    def row(self, name="a"):
        return next((row for row in self.status().models if row.name == name), None)

    def wait_refused(self, words, name="a"):
        """Wait until the follower says why it does not follow a model."""

        def said():
            row = self.row(name)
            return row and any(words in why for why in (row.refused, row.reason) if why)

        wait_for(said, f"the refusal of {name}: {words}")


@pytest.fixture
def site(tmp_path):
    yield from running(Site(tmp_path))


@pytest.fixture
def anywhere(tmp_path, any_store):
    yield from running(Site(tmp_path, any_store.uri))


def running(made):
    yield made
    for what in ("gateway", "follower"):
        if what in made.processes:
            made.stop(what)


# By the engine that serves it: the file that is flipped, in the release and in its copy.
FORMS = {
    "llama_cpp": ("model.gguf", "model.gguf"),
    "llama_cpp apart": ("adapter.gguf", "adapter/adapter.gguf"),
    "vllm": ("model/model.safetensors", "model.safetensors"),
    "tensorrt_llm": ("engine/engine/rank0.engine", "engine/rank0.engine"),
}
MODELS = {"llama_cpp": "tiny_gguf", "vllm": "tiny_dir", "tensorrt_llm": "built"}


@pytest.fixture(
    params=[
        pytest.param(form, marks=() if "llama_cpp" in form else pytest.mark.long) for form in FORMS
    ]
)
def shipped(request, site, tmp_path, monkeypatch):
    """A function that releases a version in a form, and the hash of its weights.

    The starts are real; behind those of vLLM and TensorRT-LLM stand-ins answer.
    """
    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", fake_engine.install_vllm(tmp_path / "site"))
    if request.param == "llama_cpp apart":
        models = request.getfixturevalue("tiny_models")
        parts = {"base": models.base_gguf, "adapter": models.adapter_gguf}
        hashes = {name: hash_files(path)[0] for name, path in parts.items()}
        return partial(release_apart, site.store, *parts.values()), digest_of(hashes)
    path = request.getfixturevalue(MODELS[request.param])
    sha256, names = hash_files(path)
    below = FORMS[request.param][0].partition("/")[0]
    files = {f"{below}/{name}": (path / name).read_bytes() for name in names if path.is_dir()}
    stated = {"engine": request.param, "limits": {"max_batch_size": 2, "max_total_tokens": 256}}
    files = files or {"model.gguf": path.read_bytes()}
    return partial(ship, site.store, files, engine=stated), sha256


def test_bytes_that_changed_after_the_release_are_not_served(shipped, site, tmp_path, request):
    make, sha256 = shipped
    # The context of the tiny models is short.
    site.set(readiness={**QUICK, "warmup_prompt_words": []})
    kept, local = FORMS[request.node.callspec.params["shipped"]]
    site.serve()
    make(version="1")
    site.follow("--no-previous", real=True)
    site.wait_served("1")
    assert site.stated() == ("1", sha256)
    wait_for(lambda: rows_between(site.folder / "usage.sqlite"))
    row = rows_between(site.folder / "usage.sqlite")[-1]
    assert (row.model_version, row.weights_sha256) == ("1", sha256)
    # An edited hash does not last.
    file = site.folder / "state" / "gateway.yaml"
    text = file.read_text()
    file.write_text(text.replace(sha256, "0" * 64))
    wait_for(lambda: file.read_text() == text)
    # In the store, and in the copy that an earlier start has fetched.
    copies, pid = tmp_path / "cache" / "released" / "a", site.processes["follower"].pid
    os.kill(pid, signal.SIGSTOP)
    make(version="2")
    flip(site.folder / "store" / "models" / "a" / "2" / kept)
    shutil.copytree(copies / "1", copies / "2")
    flip(copies / "2" / local)
    os.kill(pid, signal.SIGCONT)
    site.wait_refused(f"models/a/2/{kept}")
    assert (site.answered_by(), site.stated()) == ("a-1", ("1", sha256))
    # Between the check and the engine's own look.
    make(version="3")
    logs = site.folder / "state" / "logs"
    wait_for(lambda: any("a@3" in one.read_text() for one in logs.glob("*.json")), pause=1e-3)
    flip(copies / "3" / local)
    site.wait_refused("was changed after it was checked")
    assert (site.answered_by(), site.stated()) == ("a-1", ("1", sha256))


def test_a_release_becomes_served_without_a_further_command(site):
    site.serve()
    site.follow()
    ready = f"http://127.0.0.1:{site.port}/v1/health/ready"

    def message():
        try:
            return httpx.get(ready).json()["message"]
        except httpx.TransportError:
            return None

    wait_for(lambda: message() == "no model is served yet")
    # What prompts, answers and keys lie in is its owner's alone.
    for name in ("usage.sqlite", "state", "state/gateway.yaml"):
        assert not (site.folder / name).stat().st_mode & 0o077
    site.release("1")
    site.wait_served("1")
    site.release("2")
    site.wait_served("2")
    wait_for(lambda: site.status().complete)
    # The release before it stands behind it.
    assert (site.row().released, site.row().served, site.row().has_fallback) == ("2", "2", True)
    os.kill(site.pids()["2"], signal.SIGKILL)
    wait_for(lambda: site.answered_by() == "a-1", what="an answer of the release before")
    # It is started again.
    wait_for(lambda: site.status().complete)
    site.release("3")
    site.wait_served("3")
    wait_for(lambda: set(site.pids()) == {"2", "3"}, "the end of the oldest engine")
    site.stop("gateway")
    engines = site.pids().values()
    site.stop("follower")
    assert not any(psutil.pid_exists(pid) for pid in engines)


def command(site, *words):
    """A command of the follower that ends by itself."""
    words = [*CLI, "follow", *words, "--folder", site.folder / "state"]
    return subprocess.run(
        words, capture_output=True, text=True, env=child_environment(), check=False
    )


@pytest.mark.parametrize(
    ("behaviour", "options", "why"),
    [
        ("exit", (), "it ended: tuneline: a@2 can't be loaded: out of memory"),
        pytest.param(
            *("silent", ("--start-seconds", "3"), "it is not ready in time"), marks=pytest.mark.long
        ),
    ],
)
def test_a_release_that_does_not_start_is_left_and_reported(site, behaviour, options, why):
    fake_engine.behave(site.engines, **{"2": behaviour})
    site.release("1")
    site.serve()
    site.follow(*options)
    site.wait_served("1")
    site.release("2")
    wait_for(lambda: site.row().reason, "the reason")
    assert (site.row().released, site.row().served) == ("2", "1")
    assert why in site.row().reason
    assert site.answered_by() == "a-1"
    assert f"a@2 is not served: {why}" in site.log()
    # One that hangs is stopped after the line is written, and may be tried again.
    wait_for(lambda: "2" not in site.pids())
    wait_for(lambda: ready_body(site)["behind"] == {"a": "2"})
    shown = command(site, "--status")
    assert shown.returncode == 1
    assert f"a: 2 is not served: {why}" in shown.stdout
    assert "1 serves" in shown.stdout
    # Once it can be loaded, the next try serves it.
    fake_engine.behave(site.engines)
    site.wait_served("2")
    wait_for(lambda: ready_body(site)["behind"] == {})


def ready_body(site):
    return httpx.get(f"http://127.0.0.1:{site.port}/v1/health/ready").json()


def test_a_new_follower_takes_over_and_nothing_is_interrupted(site):
    site.release("1")
    site.serve()
    site.follow("--no-previous")
    site.wait_served("1")
    pid = site.pids()["1"]
    follower = site.processes.pop("follower")
    follower.kill()
    follower.wait()
    assert site.answered_by() == "a-1"
    site.follow("--no-previous")
    wait_for(lambda: "taking over the engine of a@1" in site.log())
    wait_for(lambda: site.status().complete)
    assert site.pids()["1"] == pid
    # A second one at once is refused.
    again = command(site, "--store", site.store.uri, "--settings", site.folder / "settings.yaml")
    assert (again.returncode, "another follower works in" in again.stderr) == (2, True)
    site.release("2")
    site.wait_served("2")
    wait_for(lambda: not psutil.pid_exists(pid), "the end of the old engine")


def test_models_have_engines_of_their_own_and_settings_stay(site):
    upstream = {"name": "larger", "base_url": "http://127.0.0.1:9/v1", "model": "big"}
    model = {"id": "a", "chain": ["larger"]}
    site.set(upstreams=[upstream], models=[model], max_in_flight=9)
    site.release("1")
    site.release("7", "b")
    site.serve()
    site.follow()
    site.wait_served("1")
    site.wait_served("7", "b")
    document = json.loads((site.folder / "state" / "gateway.yaml").read_text().partition("\n")[2])
    chains = {entry["id"]: entry["chain"] for entry in document["models"]}
    assert chains == {"a": ["a-1", "larger"], "b": ["b-7"]}
    assert document["max_in_flight"] == 9


def test_releases_under_load_drop_no_request(site):
    """50 requests a second while two releases come; each old engine is stopped."""
    fake_engine.behave(site.engines, **dict.fromkeys("123", 0.1))
    site.release("1")
    site.serve()
    site.follow("--no-previous")
    site.wait_served("1")
    with SteadyLoad(f"http://127.0.0.1:{site.port}", site.key, "a", 50) as load:
        for version in "23":
            old = next(iter(site.pids().values()))
            site.release(version)
            wait_for(lambda v=version: site.status().models[0].served == v)
            wait_for(lambda pid=old: not psutil.pid_exists(pid), "the old engine's end")
            time.sleep(0.5)
    assert len(load.answers) > 100
    assert {answer.status for answer in load.answers} == {200}
    assert {answer.attempts for answer in load.answers} == {"a-1", "a-2", "a-3"}


def test_a_release_that_is_refused_keeps_no_other_from_being_served(anywhere):
    """Damaged, of another version of Tuneline, hostile, or set back: the one before serves on."""
    site, store = anywhere, anywhere.store
    for name in "ab":
        site.release("1", name)
    site.serve()
    options = ["--no-previous", *(word for name in "abcd" for word in ("--name", name))]
    site.follow(*options)
    for name in "ab":
        site.wait_served("1", name)
    site.release("2", "b", settings={"governance": {"fallback": {"budget_s": "soon"}}})
    site.wait_refused("config.json of", "b")
    assert "budget_s: Input should be a valid number" in site.row("b").refused
    store.put_bytes("models/c/production.json", b'{"name": "c", "version": "1"}')
    site.wait_refused("models/c/production.json can't be read: manifest: Field required", "c")
    forge(store, hostile("a file", "../../../../../outside", name="d"), "d")
    site.wait_refused("is not the name of a file below its folder", "d")
    # A setting that a later version of Tuneline knows, or an earlier one did; and a host that
    # prompts and the store's key would be sent to.
    evil = {"base_url": "https://evil.example.com/v1", "model": "m"}
    evil["api_key_env"] = "AWS_SECRET_ACCESS_KEY"
    fallback = {"retired": 1, "larger": evil, "allowed_hosts": ["evil.example.com"]}
    site.release("2", settings={"governance": {"fallback": fallback, "canary": {}}})
    site.wait_served("2")
    assert "evil" not in (site.folder / "state" / "gateway.yaml").read_text()
    assert "a: the larger model at https://evil.example.com/v1 is left out" in site.log()
    before = store.get_bytes("models/b/production.json")
    site.release("4", "b")
    site.wait_served("4", "b")
    store.put_bytes("models/b/production.json", before)
    site.wait_refused("the pointer of b was set back", "b")
    # The version is the one that is served, but with another manifest than the pointer says.
    pointer = store.get_bytes("models/a/production.json")
    stated = store.find("models/a/2/manifest.json").sha256.encode()
    store.put_bytes("models/a/production.json", pointer.replace(stated, b"0" * 64, 1))
    site.wait_refused("the pointer of a says 000", "a")
    # Another follower of the folder knows it too, and has nothing else of b to serve.
    site.stop("gateway")
    site.stop("follower")
    site.serve()
    site.follow(*options)
    site.wait_served("4", "b")
    site.wait_refused("the pointer of b was set back", "b")
    assert not site.status().complete
    assert not [p for p in (site.folder, *site.folder.parents[:5]) if (p / "outside").exists()]


def test_a_follower_that_trusts_a_key_serves_what_it_has_signed_alone(anywhere, tmp_path):
    pytest.importorskip("model_signing", reason="requirements/signing.txt is not installed")
    site, (private, public) = anywhere, key_pair(tmp_path, "ours")
    writer = Writer(site.store, private, tmp_path / "signed", "a", "1")
    # The engines load nothing, so what is served ships no weights.
    writer.promotes("1", {"README.md": b"good"})
    site.release("1", "b")
    site.serve()
    site.follow("--no-previous", "--public-key", public)
    site.wait_served("1")
    site.wait_refused("model.sig is missing: the release is not signed", "b")
    assert site.answered_by("b") is None
    for number, attack in enumerate(FORGERIES):
        site.wait_refused(attack(writer, f"v{number}"))
        assert (site.row().served, site.answered_by()) == ("1", "a-1")
    # Nor does the next follower, which has nothing but the store and what was followed.
    for what in ("gateway", "follower"):
        site.stop(what)
    site.serve()
    site.follow("--no-previous", "--public-key", public)
    site.wait_served("1")
    writer.promotes("2", {"README.md": b"better"})
    site.wait_served("2")
    assert site.row().refused is None
    pointer = site.store.get_bytes("models/a/production.json")
    edited = pointer.replace(b'"released_at": "2', b'"released_at": "1')
    site.store.put_bytes("models/a/production.json", edited)
    site.wait_refused("its released_at is not that of the last release")
    assert site.answered_by() == "a-2"


def test_a_withdrawal_that_broke_off_is_completed(anywhere):
    """A canary has withdrawn 2, and its follower was killed before it went back to 1."""
    site = anywhere
    for version in "12":
        site.release(version)
    event = Withdrawn(by="canary", reason="more errors than the release")
    record(read_pointer(site.store, "a"), "2", "unused", [event])
    site.serve()
    site.follow()
    site.wait_served("1")
    wait_for(lambda: read_release(site.store, "a").version == "1", "the release of 1")
    wait_for(lambda: site.status().complete)
    assert "2 was withdrawn: more errors than the release" in site.log()
    assert "starting the engine of a@2" not in site.log()


def test_an_engine_is_found_again_after_a_step_of_the_clock(tmp_path, monkeypatch):
    """And another process of the same id is not taken for it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        unit = EngineUnit("llama_cpp", ())
        engine = EngineProcess(unit, 1, DetachedProcess(process.pid), tmp_path / "log", 60.0)
        record = tmp_path / "engines.json"
        record.write_text(json.dumps([engine.record]))
        real = psutil.Process.create_time
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: real(self) + 3600)
        (found,) = take_over(record, lambda _: unit, 60.0, print)
        assert found.record == engine.record
        other = {**engine.record, "started": engine.record["started"] + "0"}
        for stale in (other, {k: v for k, v in other.items() if k != "started"}):
            record.write_text(json.dumps([stale]))
            assert take_over(record, lambda _: unit, 60.0, print) == []
        process.communicate(b"\n")
    record.write_text('[{"port": 1}]')
    with pytest.raises(UserError, match="engines of an earlier follower may run unseen; stop them"):
        take_over(record, lambda _: unit, 60.0, print)


def test_a_file_that_changes_under_a_running_engine_ends_it(tmp_path, monkeypatch):
    monkeypatch.setattr("tuneline.serving.following.engines._LOOK_SECONDS", 0.0)
    model, log = tmp_path / "model.gguf", tmp_path / "engine.log"
    model.write_text("good")
    record = LoadedWeights(files={model: file_state(model)})
    log.with_suffix(".json").write_text(record.model_dump_json())
    command = [sys.executable, "-c", "import signal; signal.pause()"]
    process = DetachedProcess.start(command, log, child_environment())
    engine = EngineProcess(EngineUnit("llama_cpp", ()), 1, process, log, 60.0)
    engine.look([])
    assert engine.state == "ready"
    model.write_text("evil!")
    engine.look([])
    assert (engine.state, process.alive()) == ("failed", False)
    assert engine.reason.startswith(f"{model} was changed after it was checked")


def test_an_engine_that_may_not_be_taken_over_is_stopped_even_if_it_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr("tuneline.serving.following.engines._STOP_SECONDS", 0.2)
    code = "import signal as s; s.signal(s.SIGTERM, s.SIG_IGN); print('up', flush=True); s.pause()"
    command, log, record = [sys.executable, "-c", code], tmp_path / "log", tmp_path / "engines.json"
    engine = DetachedProcess.start(command, log, child_environment())
    wait_for(log.read_text)
    record.write_text(json.dumps([{**engine.record, "releases": [["a", "1"]]}]))
    withdrawn = Mock(side_effect=UserError("a 1 was withdrawn"))
    assert take_over(record, withdrawn, 60.0, print) == []
    assert not engine.alive()
