"""The live reload: a changed configuration file is taken over while requests are served.

SIGHUP asks for it, and with `--watch` every change of the file does. Upstreams and models are
exchanged at once, when the new ones have proven that they answer; requests under way finish on
the old ones. A file that can't be taken leaves everything as it was, and the log says why.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import signal
import time
from contextlib import suppress
from pathlib import Path

from tuneline.errors import TunelineError, UserError
from tuneline.serving.gateway.config import GatewayConfig, load_config
from tuneline.serving.gateway.runtime import RELOADS, Runtime

log = logging.getLogger("tuneline.gateway")

# With --watch the file is looked at this often.
_LOOK_S = 0.25
# The parts of the configuration that a reload exchanges; the others are bound at the start.
LIVE = frozenset(
    {
        "upstreams",
        "models",
        "allowed_hosts",
        "readiness",
        "drain",
        "currency",
        "max_body_bytes",
        "max_in_flight",
        "max_in_flight_bytes",
    }
)


def fingerprint(path: Path) -> str:
    """Return what identifies the content of a configuration file, 16 hex digits; "" without one."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return ""


def await_file(path: Path) -> None:
    """Wait until a configuration file is there."""
    if not path.exists():
        print(f"waiting for {path}", flush=True)
    while not path.exists():
        time.sleep(_LOOK_S)


def fixed_differences(old: GatewayConfig, new: GatewayConfig) -> list[str]:
    """Return the keys that differ although a running gateway can't change them."""
    differing = []
    for name in GatewayConfig.model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if name == "production_log" and before and after:
            # The scrubber is exchanged; a new release may speak other languages.
            before = before.model_copy(update={"languages": after.languages})
        if name not in LIVE and before != after:
            differing.append(name)
    return differing


class Reloader:
    """Takes over changes of the configuration file.

    Args:
        path: the file.
        runtime: the running gateway.
        taken: fingerprint of the file that the gateway was started with.
        watch: whether a change of the file is taken over unasked.
    """

    def __init__(self, path: Path, runtime: Runtime, taken: str, *, watch: bool) -> None:
        self._path = path
        self._runtime = runtime
        self._watch = watch
        self._seen = taken
        self._asked = asyncio.Event()
        runtime.reload.taken = taken

    async def run(self) -> None:
        """Reload whenever it is asked for; ends when it is cancelled."""
        with suppress(NotImplementedError, RuntimeError, ValueError):
            # Only the main thread of a process hears signals.
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._asked.set)
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S if self._watch else None):
                    await self._asked.wait()
            changed = self._watch and fingerprint(self._path) not in ("", self._seen)
            if self._asked.is_set() or changed:
                self._asked.clear()
                await self._reload()

    async def _reload(self) -> None:
        state = self._runtime.reload
        self._seen = found = fingerprint(self._path)
        try:
            config = load_config(self._path)
            _check(self._runtime.config, config)
            await self._runtime.change(config)
        except TunelineError as error:
            state.refused = found
            self._runtime.metrics.add(RELOADS, outcome="refused")
            log.error("the configuration stays as it was: %s", error)
            return
        state.taken, state.refused = found, None
        self._runtime.metrics.add(RELOADS, outcome="taken")
        models = ", ".join(f"{model.id} ({' -> '.join(model.chain)})" for model in config.models)
        log.info("configuration %s taken over, models: %s", found, models or "none")


def _check(old: GatewayConfig, new: GatewayConfig) -> None:
    fixed = fixed_differences(old, new)
    if fixed:
        keys = ", ".join(f"`{name}`" for name in fixed)
        raise UserError(f"{keys} can't change while the gateway runs; restart it for that")
