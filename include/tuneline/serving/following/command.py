"""`tuneline follow`: the follower as a process, its signals and its end."""

from __future__ import annotations

import fcntl
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from tuneline.artifacts.governance import PointerName
from tuneline.config import read_yaml
from tuneline.errors import EXIT_FAILED, EXIT_OK, UserError
from tuneline.files import private_folder
from tuneline.machine.redaction import redact
from tuneline.serving.engines import ENGINE_NAMES
from tuneline.serving.following.canaries import CanaryOptions
from tuneline.serving.following.engines import Launch
from tuneline.serving.following.follower import Follower, Options
from tuneline.serving.following.gateway_file import GatewayFile
from tuneline.serving.following.release import Trust
from tuneline.serving.following.status import read_status
from tuneline.serving.gateway.config import check_config
from tuneline.store import open_store

CONFIG_FILE = "gateway.yaml"
# While an engine starts or drains, the next look comes sooner.
_HURRY_SECONDS = 0.25


def run_follower(
    store_uri: str,
    *,
    names: Sequence[str],
    pointer: PointerName,
    settings: Path,
    folder: Path,
    gateway_url: str | None,
    binaries: Sequence[str],
    keep_previous: bool,
    start_seconds: float,
    every: float,
    canary: CanaryOptions,
    trust: Trust | None = None,
) -> int:
    """Follow the releases of a store until SIGTERM or SIGINT.

    At the end it waits for the gateway to end, then stops its engines. While the gateway goes on
    they are left to it, for the next follower of the folder to take over; a second signal stops
    them at once.

    Args:
        settings: configuration of the gateway, without what is released.
        folder: folder of the gateway's configuration and of its own files.
        binaries: `ENGINE=FOLDER`, the folder of `tuneline` in the environment of an engine.
        start_seconds: longest time until an engine's first token.
        every: time between two looks at the store, in seconds.

    Raises:
        UserError: if the settings are wrong, or another follower works in the folder.
    """
    given = read_settings(settings)
    url = gateway_url or f"http://127.0.0.1:{given.get('port', 8000)}"
    folder = folder.absolute()
    private_folder(folder)
    with _alone(folder):
        gateway = GatewayFile(folder / CONFIG_FILE, url.rstrip("/"))
        launch = Launch(store_uri, folder / "logs", start_seconds, _binaries(binaries))
        follower = Follower(
            open_store(store_uri),
            Options(names, given, canary, trust, keep_previous, every=every, pointer=pointer),
            launch,
            gateway,
            folder=folder,
            say=_say,
        )
        ends = _Ends()
        _say(f"following what {store_uri} has in {pointer} for the gateway at {url}")
        follower.take_over()
        while not ends.asked.is_set():
            try:
                follower.step()
            except Exception as error:  # engines that serve must not end with one odd answer
                _say(redact(f"this look failed, trying again: {type(error).__name__}: {error}"))
            ends.asked.wait(_HURRY_SECONDS if follower.hurries else every)
        _end(follower, gateway, ends, given)
    return EXIT_OK


def show_status(folder: Path) -> int:
    """Print how the follower of a folder stands; 0 if every released version is served.

    Raises:
        UserError: if no follower is at work there.
    """
    status = read_status(folder)
    for line in status.lines():
        print(line)
    return EXIT_OK if status.complete else EXIT_FAILED


def read_settings(path: Path) -> dict[str, Any]:
    """Read the gateway's settings; relative paths in them lie beside the file.

    Raises:
        UserError: if they are no configuration of a gateway.
    """
    given: dict[str, Any] = read_yaml(path)
    base = path.resolve().parent
    whole = {"upstreams": [], "models": [], **given}
    # A model of the settings may have nobody but the releases to answer for it.
    models = [model for model in whole["models"] if isinstance(model, dict) and model.get("chain")]
    check_config({**whole, "models": models}, path, base)
    return _absolute(given, base)


def _absolute(given: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Return settings whose paths hold from another folder."""
    found = dict(given)

    def whole(section: Mapping[str, Any], key: str) -> dict[str, Any]:
        value = section.get(key)
        return {**section, key: str(base / Path(value).expanduser())} if value else dict(section)

    found |= whole(found, "keys_file")
    for name, key in (("ledger", "path"), ("production_log", "spool")):
        if found.get(name):
            found[name] = whole(found[name], key)
    if found.get("upstreams"):
        found["upstreams"] = [whole(entry, "tokenizer") for entry in found["upstreams"]]
    return found


class _Ends:
    """The signals that end the follower: the first one asks, the second one insists."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.insisted = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        (self.insisted if self.asked.is_set() else self.asked).set()


def _end(
    follower: Follower, gateway: GatewayFile, ends: _Ends, settings: Mapping[str, Any]
) -> None:
    drain = settings.get("drain") or {}
    patience = float(drain.get("delay_s", 0)) + float(drain.get("timeout_s", 30)) + 5
    deadline = time.monotonic() + patience
    while gateway.state() is not None and not ends.insisted.is_set():
        if time.monotonic() > deadline:
            _say("the gateway goes on, so its engines are left to it and to the next follower")
            return
        ends.insisted.wait(_HURRY_SECONDS)
    _say("stopping the engines")
    follower.stop()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / "follow.lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another follower works in {folder}; stop it, or give --folder another one"
            ) from None
        yield


def _binaries(given: Sequence[str]) -> dict[str, Path]:
    found = {}
    for text in given:
        engine, _, place = text.partition("=")
        if engine not in ENGINE_NAMES or not place:
            raise UserError(
                f"--engine {text}: write ENGINE=FOLDER with one of {', '.join(ENGINE_NAMES)}"
            )
        if not (Path(place) / "tuneline").exists():
            raise UserError(f"--engine {text}: {place} has no command `tuneline`")
        found[engine] = Path(place).absolute()
    return found


def _say(text: str) -> None:
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}", flush=True)
