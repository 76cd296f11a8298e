"""`tuneline engine`: serve the released model of a store with llama.cpp."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from tuneline.errors import UserError
from tuneline.serving.release.released import Release, fetch_weights, newest_release
from tuneline.store import Store, open_store

_LOOK_SECONDS = 10.0


def run_engine(
    store_uri: str, *, name: str | None, host: str, port: int, parallel: int, wait: bool
) -> int:
    """Fetch the released weights and become the engine that serves them.

    Args:
        store_uri: the store.
        name: the model; None takes the one released last.
        host: address to listen on.
        port: port to listen on.
        parallel: requests served at once.
        wait: whether to wait for a first release.

    Returns:
        Never: the process is replaced by the engine's.

    Raises:
        UserError: nothing is released and `wait` is off.
    """
    from tuneline.models.cache import cache_root

    store = open_store(store_uri)
    release = _find(store, name, wait)
    weights = fetch_weights(store, release, Path(cache_root()) / "released")
    options = {
        "--model": str(weights),
        "--host": host,
        "--port": str(port),
        "--alias": release.name,
        "--parallel": str(parallel),
    }
    argv = [sys.executable, "-m", "tuneline.serving.engines.llama_cpp.server"]
    argv += [part for option in options.items() for part in option]
    print(f"serving {release.name} {release.version} on {host}:{port}", flush=True)
    os.execv(sys.executable, argv)


def _find(store: Store, name: str | None, wait: bool) -> Release:
    said = False
    while (release := newest_release(store, name)) is None:
        if not wait:
            raise UserError(
                f"{store.uri} holds no released model{f' named {name}' if name else ''}; "
                "a run of finetune_to_production makes one"
            )
        if not said:
            print(f"waiting for a released model in {store.uri}", flush=True)
            said = True
        time.sleep(_LOOK_SECONDS)
    return release
