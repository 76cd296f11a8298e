"""Serve what is released on this machine: the gateway, and the follower that starts engines."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import httpx
import yaml

from tuneline.artifacts.governance import PointerName
from tuneline.config import read_policy
from tuneline.config.deployment import ENGINE_IMAGES
from tuneline.errors import TunelineError, UserError
from tuneline.files import write_whole
from tuneline.serving.following.status import Status, read_status
from tuneline.serving.gateway.accounts.keys import add_key
from tuneline.stack import clock
from tuneline.stack.layout import LOOPBACK, Layout, Say
from tuneline.stack.lifecycle import FOLLOWER, GATEWAY, Stack
from tuneline.stack.services import Service, require_free

_KEY_NAME = "demo"
# A small model loads in seconds; a large one reads gigabytes first.
_ENGINE_SECONDS = 600
_START_SECONDS = 60
# Days that pass in minutes have their requests in the store soon.
_PART_SECONDS = 2


def serve(stack: Stack, pointer: PointerName, say: Say) -> None:
    """Start the gateway and the follower that keeps it at a pointer, if they don't run."""
    following = stack.table.notes(FOLLOWER).get("pointer") == pointer
    if following and all(stack.table.find(name) for name in (FOLLOWER, GATEWAY)):
        return
    for name in (GATEWAY, FOLLOWER):
        stack.table.stop(name)
    check_port(stack)
    layout = stack.layout
    api_key(layout)
    folder = _folder(layout)
    settings, config = folder / "settings.yaml", folder / "gateway.yaml"
    config.unlink(missing_ok=True)  # it may name another port or store; the follower writes it
    settings.write_text(yaml.safe_dump(gateway_settings(layout), sort_keys=False))
    tuneline = str(layout.ml_bin / "tuneline")
    follow = [tuneline, "follow", "--store", layout.store, "--settings", str(settings)]
    follow += ["--pointer", pointer, "--folder", str(folder), *_engines(layout)]
    notes = {"pointer": pointer}
    service = Service(FOLLOWER, follow, _environment(), layout.project, notes, stop_seconds=60)
    stack.start(service)
    argv = [tuneline, "gateway", "--watch", "--config", str(config)]
    ports = {"port": layout.gateway_port}
    stack.start(Service(GATEWAY, argv, _environment(), layout.project, ports, stop_seconds=35))
    url = f"http://{LOOPBACK}:{layout.gateway_port}/v1/health/live"
    stack.await_ready(GATEWAY, lambda: _answers(url), _START_SECONDS)
    say(f"the gateway follows what is released to {pointer}: {layout.gateway_url}/v1")


def await_served(stack: Stack, name: str, version: str) -> None:
    """Wait until the gateway answers with a version of a model.

    Raises:
        TunelineError: with what stands in the way, if that is known or it takes too long.
    """
    deadline = time.monotonic() + _ENGINE_SECONDS
    reason: str | None = None
    while time.monotonic() < deadline:
        for service in (FOLLOWER, GATEWAY):
            if stack.table.find(service) is None:
                raise TunelineError(f"{service} ended; see {stack.layout.log_of(service)}")
        status = _status(stack.layout)
        row = next((row for row in status.models if row.name == name), None) if status else None
        if status and row and row.served == version and status.switched:
            return
        if row is not None:
            reason = row.refused or (row.reason if row.released == version else None)
        if reason:
            break
        time.sleep(0.3)
    raise TunelineError(
        f"{name} {version} is not served: {reason or 'it takes too long'}; "
        f"see {stack.layout.log_of(FOLLOWER)}"
    )


def check_port(stack: Stack) -> None:
    """Raise a UserError if another program has the gateway's port, before a run is made in vain."""
    port = stack.layout.gateway_port
    ours = stack.table.find(GATEWAY) and stack.table.notes(GATEWAY).get("port") == port
    if not ours:
        require_free(port, "the gateway", "TUNELINE_GATEWAY_PORT")


def api_key(layout: Layout) -> str:
    """Return the stack's API key for its user, and make it when there is none."""
    path = _folder(layout) / "api-key"
    if not path.exists():
        _keys_file(layout).unlink(missing_ok=True)
        write_whole(path, add_key(_keys_file(layout), _KEY_NAME).encode())
    return path.read_text().strip()


def add_client(layout: Layout, name: str) -> str:
    """Return a new API key for a client of the stack's gateway."""
    return add_key(_keys_file(layout), name)


def ask(layout: Layout, body: dict[str, Any], key: str | None = None) -> tuple[str, str]:
    """Send a chat request through the gateway; return the text of the answer and its id."""
    url = f"http://{LOOPBACK}:{layout.gateway_port}/v1/chat/completions"
    headers = {"Authorization": f"Bearer {key or api_key(layout)}"}
    try:
        answer = httpx.post(url, json=body, headers=headers, timeout=120, trust_env=False)
    except httpx.HTTPError as error:
        raise TunelineError(f"the gateway does not answer ({error})") from error
    if not answer.is_success:
        raise TunelineError(f"the gateway answered {answer.status_code}: {answer.text[:300]}")
    return str(answer.json()["choices"][0]["message"]["content"]), answer.headers["x-request-id"]


def curl_line(layout: Layout, body: dict[str, Any]) -> str:
    """Write a request into a file and return the `curl` command that sends it."""
    path = _folder(layout) / "request.json"
    path.write_text(json.dumps(body, indent=1, ensure_ascii=False))
    shown = os.path.relpath(path, layout.project) if layout.project in path.parents else path
    return (
        f"curl -s {layout.gateway_url}/v1/chat/completions -H 'Content-Type: application/json' "
        f"-H 'Authorization: Bearer {api_key(layout)}' -d @{shown}"
    )


def gateway_settings(layout: Layout) -> dict[str, Any]:
    """Return the gateway's configuration without what is released, which the follower adds."""
    folder, policy = _folder(layout), read_policy().content
    settings: dict[str, Any] = {
        "host": LOOPBACK,
        "port": layout.gateway_port,
        "keys_file": str(_keys_file(layout)),
        "ledger": {"path": str(folder / "usage.sqlite")},
        "allowed_hosts": list(policy.allowed_hosts),
        "upstream_keys": dict(policy.upstream_keys),
    }
    if layout.log_sample_rate:
        settings["production_log"] = {
            "store": layout.store,
            "spool": str(folder / "spool"),
            "sample_rate": layout.log_sample_rate,
        }
        if clock.environment():
            settings["production_log"]["part_seconds"] = _PART_SECONDS
    return settings


def _engines(layout: Layout) -> list[str]:
    """Return the options that name the environments of engines, as far as they are built."""
    places = {engine: layout.engine_bin(engine) for engine in ENGINE_IMAGES}
    options = []
    for engine, place in places.items():
        if place != layout.ml_bin and (place / "tuneline").exists():
            options += ["--engine", f"{engine}={place}"]
    return options


def _status(layout: Layout) -> Status | None:
    try:
        return read_status(_folder(layout))
    except UserError:
        return None


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
