import itertools
import json
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import yaml
from tests.lab.upstream_server import ServerThread, UpstreamServer
from tests.lab.waiting import wait_for

from tuneline.data.pii.replace.scrubber import PlaceholderScrubber
from tuneline.serving.gateway.accounts.keys import add_key
from tuneline.serving.gateway.app.routes import create_app
from tuneline.serving.gateway.config import load_config
from tuneline.serving.gateway.process import GatewayProcess

CHAT = "chat/completions"
# Health as it was at the start: pings neither see a fault before a request meets it, nor fail
# where the machine is busy with other things.
QUIET = {
    "ping_interval_s": 600,
    "ping_timeout_s": 60,
    "stale_after_s": 1200,
    # So that the first ping is the proof, and none comes after it.
    "warmup_prompt_words": [],
}
# For tests of the pings.
EAGER = {"ping_interval_s": 0.1, "ping_timeout_s": 5, "stale_after_s": 20}


class Clock:
    """The monotonic clock, which a test can put forward."""

    ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


class Client:
    """A client that holds a key of a gateway."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key
        headers = {"authorization": f"Bearer {key}"}
        self.client = httpx.Client(base_url=url, headers=headers, timeout=20)

    def post(self, path: str, **fields: object) -> httpx.Response:
        asked = ask(**fields) if path == CHAT else {"model": "support", **fields}
        return self.client.post(f"/v1/{path}", json=asked)

    def chat(self, **fields: object) -> httpx.Response:
        return self.post(CHAT, **fields)

    def models(self) -> list[str]:
        return [entry["id"] for entry in self.client.get("/v1/models").json()["data"]]


class Gateway(Client):
    """A running gateway."""

    def __init__(self, config_path: Path, key: str, ledger: Path) -> None:
        app = create_app(
            load_config(config_path), lambda log: PlaceholderScrubber(tuple(log.languages))
        )
        self.runtime = app.state.runtime
        self.clock = self.runtime.keys._clock = Clock()
        self.ledger = ledger
        self.thread = ServerThread(app)
        super().__init__(self.thread.url, key)

    def with_key(self, key: str) -> Client:
        return Client(self.url, key)

    def stream(self, path: str = CHAT, **fields: object) -> tuple[httpx.Response, list[dict], bool]:
        """The response, its events, and whether `[DONE]` ended it."""
        response = self.post(path, stream=True, **fields)
        lines = [line[6:] for line in response.text.split("\n\n") if line.startswith("data: ")]
        done = bool(lines) and lines[-1] == "[DONE]"
        return response, [json.loads(line) for line in lines if line != "[DONE]"], done

    @property
    def metrics(self) -> str:
        return self.client.get("/metrics").text

    def rows(self, count: int, kind: str = "request") -> list[dict]:
        """The ledger's rows, once so many are there."""

        def read() -> list[dict]:
            with closing(sqlite3.connect(self.ledger)) as db:
                db.row_factory = sqlite3.Row
                found = db.execute(
                    "SELECT * FROM usage WHERE kind = ? ORDER BY time, attempt", (kind,)
                )
                return [dict(row) for row in found]

        wait_for(lambda: len(read()) >= count)
        rows = read()
        assert len(rows) == count
        return rows

    def probe(self) -> dict:
        """What the readiness probe says."""
        return self.client.get("/v1/health/ready").json()

    def states(self) -> dict[str, str]:
        """What the probe says of each upstream, by name."""
        return self.probe()["upstreams"]

    def wait_ready(self) -> None:
        wait_for(lambda: self.probe()["status"] == "ready")

    def wait_all_ready(self) -> None:
        """Wait until every upstream is ready, so that none is passed over."""
        wait_for(lambda: set(self.states().values()) == {"ready"})

    def follow_keys(self) -> None:
        """Let the second pass after which it looks at the keys file again."""
        self.clock.ahead_s += 1.0

    def stop(self) -> None:
        self.client.close()
        self.thread.stop()


def ask(**fields: object) -> dict:
    return {"model": "support", "messages": [{"role": "user", "content": "a b c"}], **fields}


def text_of(events: list[dict]) -> str:
    return "".join(
        choice["delta"].get("content") or ""
        for event in events
        for choice in event.get("choices", [])
    )


def counts(row: dict) -> tuple[int, int, int]:
    return row["prompt_tokens"], row["completion_tokens"], row["estimated"]


def upstream_entry(server: UpstreamServer, **fields: object) -> dict:
    return {
        "name": server.name,
        "base_url": server.base_url,
        "model": f"{server.name}-model",
        "price": {"per_1k_prompt": 1.0, "per_1k_completion": 2.0},
        **fields,
    }


@pytest.fixture(scope="session")
def servers() -> Iterator[dict[str, UpstreamServer]]:
    made = {name: UpstreamServer(name) for name in ("small", "large")}
    yield made
    for server in made.values():
        server.stop()


@pytest.fixture
def small(servers: dict[str, UpstreamServer]) -> UpstreamServer:
    servers["small"].reset()
    return servers["small"]


@pytest.fixture
def large(servers: dict[str, UpstreamServer]) -> UpstreamServer:
    servers["large"].reset()
    return servers["large"]


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    """Writes a configuration with one model, `support`, over the given upstreams."""

    def write(upstreams: list[dict], model: dict | None = None, **fields: object) -> Path:
        config = {
            "keys_file": "keys.json",
            "ledger": {"path": "usage.db", "flush_interval_s": 0.02},
            "upstreams": upstreams,
            "models": [
                {"id": "support", "chain": [entry["name"] for entry in upstreams], **(model or {})}
            ],
            "readiness": QUIET,
            **fields,
        }
        path = tmp_path / "gateway.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write


@pytest.fixture
def start(tmp_path: Path, write_config: Callable[..., Path]) -> Iterator[Callable[..., Gateway]]:
    """Starts a gateway over the given upstreams; stops it after the test."""
    running: list[Gateway] = []
    numbers = itertools.count()

    def run(*servers: UpstreamServer | dict, **fields: object) -> Gateway:
        entries = [s if isinstance(s, dict) else upstream_entry(s) for s in servers]
        path = write_config(entries, **fields)
        keys = tmp_path / "keys.json"
        key = add_key(keys, f"tester-{next(numbers)}")
        gateway = Gateway(path, key, tmp_path / "usage.db")
        running.append(gateway)
        return gateway

    yield run
    for gateway in running:
        gateway.stop()


@pytest.fixture
def calm(start: Callable[..., Gateway]) -> Callable[..., Gateway]:
    """Starts a gateway whose upstreams are all ready."""

    def run(*servers: UpstreamServer | dict, **fields: object) -> Gateway:
        gateway = start(*servers, **fields)
        gateway.wait_all_ready()
        return gateway

    return run


@pytest.fixture(scope="session", autouse=True)
def _library() -> Iterator[None]:
    """Processes find the library where this one does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[3] / "include"))
        yield


class Process(GatewayProcess):
    """`tuneline gateway` as it runs outside of tests, with a client that holds a key of it."""

    def __init__(
        self, folder: Path, *servers: UpstreamServer | dict, files: int | None = None, **settings
    ) -> None:
        entries = [s if isinstance(s, dict) else upstream_entry(s) for s in servers]
        models = [{"id": "support", "chain": [entry["name"] for entry in entries]}]
        super().__init__(
            folder, upstreams=entries, models=models, keys=["tester"], settings=settings
        )
        if files:
            self._command = ["prlimit", f"--nofile={files}:{files}", *self._command]
        self.key = self.keys["tester"]
        self.headers = {"authorization": f"Bearer {self.key}"}

    def start(self) -> None:
        super().start()
        self.client = httpx.Client(base_url=self.base_url, headers=self.headers, timeout=20)
        wait_for(lambda: self.probe("ready") == 200)

    def ask(self, **fields: object) -> httpx.Response:
        return self.client.post(f"/v1/{CHAT}", json=ask(**fields))

    def end(self) -> None:
        """Wait until it has drained by itself."""
        self.client.close()
        self.signal(signal.SIGTERM)
        assert self._process.wait(30) == 0


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts gateways as processes; kills after the test those that are left."""
    processes: list[Process] = []

    def run(*servers: UpstreamServer | dict, **settings: object) -> Process:
        processes.append(Process(tmp_path / f"gateway-{len(processes)}", *servers, **settings))
        processes[-1].start()
        return processes[-1]

    yield run
    for process in processes:
        process.client.close()
        process.kill()
