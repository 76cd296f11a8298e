"""`tuneline engine`: serve the released model of a store with llama.cpp."""

from __future__ import annotations

import os
import time

from tuneline.errors import UserError
from tuneline.models.cache import cache_root
from tuneline.serving.engines.llama_cpp.server import server_command
from tuneline.serving.release.released import Release, fetch_weights, newest_release
from tuneline.store import Store, open_store

_LOOK_SECONDS = 10.0


def run_engine(
    store_uri: str, *, name: str | None, host: str, port: int, parallel: int, wait: bool
) -> int:
    """Fetch the released weights and replace this process by the engine that serves them.

    Args:
        store_uri: the store.
        name: the model's name; None takes the model released last.
        host: address to listen on.
        port: port to listen on.
        parallel: requests served at once.
        wait: whether to wait for a first release.

    Raises:
        UserError: if nothing is released and `wait` is off.
    """
    store = open_store(store_uri)
    release = _find(store, name, wait)
    weights = fetch_weights(store, release, cache_root() / "released")
    argv = server_command(weights, host=host, port=port, alias=release.name, parallel=parallel)
    print(f"serving {release.name} {release.version} on {host}:{port}", flush=True)
    os.execv(argv[0], argv)


def _find(store: Store, name: str | None, wait: bool) -> Release:
    announced = False
    while (release := newest_release(store, name)) is None:
        if not wait:
            raise UserError(
                f"{store.uri} holds no released model{f' named {name}' if name else ''}; "
                "a run of finetune_to_production makes one"
            )
        if not announced:
            print(f"waiting for a released model in {store.uri}", flush=True)
            announced = True
        time.sleep(_LOOK_SECONDS)
    return release
