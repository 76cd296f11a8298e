"""Serve the released model on this machine: an engine and the gateway in front of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import httpx
import yaml

from tuneline.errors import TunelineError
from tuneline.serving.gateway.keys import add_key
from tuneline.serving.probes import engine_probe
from tuneline.serving.release.released import (
    Release,
    engine_of,
    fetch_tokenizer,
    languages,
    price,
    upstream_of,
)
from tuneline.serving.server_process import free_port
from tuneline.stack.airflow import write_private
from tuneline.stack.layout import LOOPBACK, Layout
from tuneline.stack.lifecycle import ENGINE, GATEWAY, Say, Stack
from tuneline.stack.ports import require_free
from tuneline.stack.processes import Service
from tuneline.store import open_store

_KEY_NAME = "demo"
# A small model loads in seconds; a large one reads gigabytes first.
_ENGINE_SECONDS = 600
_PROBE_SECONDS = 5.0


def serve(stack: Stack, release: Release, say: Say) -> None:
    """Start engine and gateway on a release, unless they serve it already.

    Raises:
        UserError: if the gateway's port is taken.
        TunelineError: if the release has no weights for this machine, or a process did not start.
    """
    layout = stack.layout
    if _serves(stack, release):
        say(f"the gateway serves {release.name} {release.version} already: {layout.gateway_url}")
        return
    for name in (GATEWAY, ENGINE):
        stack.table.stop(name)
    check_port(stack)
    say(f"starting the engine on {release.name} {release.version} …")
    port = _start_engine(stack, release)
    _start_gateway(stack, release, port)
    say(f"the gateway serves {release.name}: {layout.gateway_url}/v1")


def check_port(stack: Stack) -> None:
    """Raise an error if another program has the gateway's port.

    It is called before a run starts, so that the run is not made in vain.

    Raises:
        UserError: if the port is taken; the message names the program where the system shows it.
    """
    port = stack.layout.gateway_port
    ours = stack.table.find(GATEWAY) and stack.table.notes(GATEWAY).get("port") == port
    if not ours:
        require_free(port, "the gateway", "TUNELINE_GATEWAY_PORT")


def api_key(layout: Layout) -> str:
    """Return the stack's API key for its user, and make it when there is none."""
    path = _folder(layout) / "api-key"
    if not path.exists():
        _keys_file(layout).unlink(missing_ok=True)
        write_private(path, add_key(_keys_file(layout), _KEY_NAME))
    return path.read_text().strip()


def ask(layout: Layout, body: dict[str, Any]) -> str:
    """Send a chat request through the gateway.

    Returns:
        Text of the answer.

    Raises:
        TunelineError: if the gateway refused the request or did not answer.
    """
    url = f"http://{LOOPBACK}:{layout.gateway_port}/v1/chat/completions"
    headers = {"Authorization": f"Bearer {api_key(layout)}"}
    try:
        answer = httpx.post(url, json=body, headers=headers, timeout=120, trust_env=False)
    except httpx.HTTPError as error:
        raise TunelineError(f"the gateway does not answer ({error})") from error
    if not answer.is_success:
        raise TunelineError(f"the gateway answered {answer.status_code}: {answer.text[:300]}")
    return str(answer.json()["choices"][0]["message"]["content"])


def curl_line(layout: Layout, body: dict[str, Any]) -> str:
    """Write a request into a file and return the `curl` command that sends it."""
    path = _folder(layout) / "request.json"
    path.write_text(json.dumps(body, indent=1, ensure_ascii=False))
    shown = os.path.relpath(path, layout.project) if layout.project in path.parents else path
    return (
        f"curl -s {layout.gateway_url}/v1/chat/completions -H 'Content-Type: application/json' "
        f"-H 'Authorization: Bearer {api_key(layout)}' -d @{shown}"
    )


def _serves(stack: Stack, release: Release) -> bool:
    ready = all(stack.table.find(name) for name in (ENGINE, GATEWAY))
    return ready and stack.table.notes(GATEWAY).get("version") == release.version


def _start_engine(stack: Stack, release: Release) -> int:
    port = free_port()
    layout = stack.layout
    place = layout.engine_bin(engine_of(open_store(layout.store), release))
    argv = [str(place / "tuneline"), "engine", "--store", layout.store, "--name", release.name]
    argv += ["--port", str(port)]
    stack.start(Service(ENGINE, argv, _environment(), layout.project, {"port": port}))
    url = f"http://{LOOPBACK}:{port}"
    entry = _upstream(layout, release, port)
    listed, adapter = entry["model"], entry.get("adapter")
    stack.await_ready(
        ENGINE,
        lambda: _engine_ready(url, listed, adapter),
        _ENGINE_SECONDS,
    )
    return port


def _start_gateway(stack: Stack, release: Release, engine_port: int) -> None:
    layout = stack.layout
    api_key(layout)
    path = _folder(layout) / "gateway.yaml"
    path.write_text(yaml.safe_dump(gateway_config(layout, release, engine_port), sort_keys=False))
    argv = [str(layout.ml_bin / "tuneline"), "gateway", "--config", str(path)]
    notes = {"port": layout.gateway_port, "model": release.name, "version": release.version}
    stack.start(Service(GATEWAY, argv, _environment(), layout.project, notes, stop_seconds=35))
    url = f"http://{LOOPBACK}:{layout.gateway_port}/v1/health/ready"
    stack.await_ready(GATEWAY, lambda: _answers(url), _ENGINE_SECONDS)


def gateway_config(layout: Layout, release: Release, engine_port: int) -> dict[str, Any]:
    """Return the configuration of a gateway in front of an engine that serves a release.

    The release's tokenizer counts the tokens of answers that broke off, for which the engine
    states no usage. The release's price applies where it states one. Requests are logged in the
    store, without the personal data that has a pattern in the languages of the release's data.
    """
    store = open_store(layout.store)
    upstream = _upstream(layout, release, engine_port)
    if tokenizer := fetch_tokenizer(store, release, _folder(layout)):
        upstream["tokenizer"] = str(tokenizer)
    config: dict[str, Any] = {
        "host": LOOPBACK,
        "port": layout.gateway_port,
        "keys_file": str(_keys_file(layout)),
        "ledger": {"path": str(_folder(layout) / "usage.sqlite")},
        "upstreams": [upstream],
        "models": [{"id": release.name, "chain": [upstream["name"]]}],
    }
    if layout.log_sample_rate:
        config["production_log"] = {
            "store": layout.store,
            "spool": str(_folder(layout) / "spool"),
            "sample_rate": layout.log_sample_rate,
        }
        if spoken := languages(store, release):
            config["production_log"]["languages"] = spoken
    if cost := price(store, release):
        upstream["price"] = {
            "hourly_cost": cost.hourly_cost,
            "completion_tokens_per_second": cost.tokens_per_second,
        }
        config["currency"] = cost.currency
    return config


def _upstream(layout: Layout, release: Release, engine_port: int) -> dict[str, Any]:
    """Return the gateway's entry of a release that an engine of its own serves."""
    url = f"http://{LOOPBACK}:{engine_port}/v1"
    return upstream_of(open_store(layout.store), release, 0, url)


def _engine_ready(url: str, model: str, adapter: int | str | None) -> bool:
    return engine_probe.ready(url, _PROBE_SECONDS, model, adapter).ok


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _folder(layout: Layout) -> Path:
    folder = layout.home / "serving"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _keys_file(layout: Layout) -> Path:
    return _folder(layout) / "keys.json"
