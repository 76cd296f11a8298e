"""`tuneline engine`: serve released models of a store on the engine that they were proven on."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace

from tuneline.artifacts.governance import ReleasePointer
from tuneline.artifacts.releases import Release
from tuneline.errors import UserError
from tuneline.models.cache import cache_root
from tuneline.serving.engines import get_engine
from tuneline.serving.release.released import Trust, newest_release, open_version, serve_request
from tuneline.store import Store, open_store

_LOOK_SECONDS = 10.0


def run_engine(
    store_uri: str,
    *,
    names: Sequence[str],
    versions: Sequence[str] = (),
    host: str,
    port: int,
    parallel: int | None,
    wait: bool,
    trust: Trust | None = None,
) -> int:
    """Fetch the released weights and replace this process by the engine that serves them.

    Args:
        store_uri: the store.
        names: names of the models; none takes the model released last. Several must be adapters
            of one base, and a request names the adapter that answers.
        versions: `NAME@VERSION` of what is served in place of the released versions, with
            `@SHA256` of the manifest behind it where only that one is to be served.
        host: address to listen on.
        port: port to listen on.
        parallel: requests served at once; None takes the number that was measured.
        wait: whether to wait for a first release.
        trust: whose releases are served; None serves all.

    Raises:
        UserError: if nothing is released and `wait` is off, a version may not be served here, the
            release's engine is not installed here, or several releases do not share one base.
    """
    store = open_store(store_uri)
    wanted: Sequence[str | None] = list(dict.fromkeys(names)) or [None]
    found = [_pinned(store, text, trust) for text in versions]
    found = found or [_released(store, _find(store, name, wait), trust) for name in wanted]
    release = found[0]
    engine = get_engine(release.engine)
    lacking = engine.missing()
    if lacking is not None:
        raise UserError(
            f"{release.name} {release.version} is served by {engine.name}, which can't be started "
            f"here: {lacking}; run this command in the image of that engine"
        )
    request = serve_request(found, cache_root() / "released", host, port)
    argv = engine.command(replace(request, parallel=parallel or request.parallel))
    served = ", ".join(f"{release.name} {release.version}" for release in found)
    print(f"serving {served} with {engine.title} on {host}:{port}", flush=True)
    for place, adapter in enumerate(request.adapters):
        print(f"adapter {place}: {adapter}", flush=True)
    os.execv(argv[0], argv)


def _pinned(store: Store, text: str, trust: Trust | None) -> Release:
    name, _, rest = text.partition("@")
    version, _, sha256 = rest.partition("@")
    if not name or not version:
        raise UserError(f"--release {text}: name a version as MODEL@VERSION")
    return open_version(store, name, version, sha256 or None, trust)


def _released(store: Store, pointer: ReleasePointer, trust: Trust | None) -> Release:
    """Return the version that a pointer names, if it may be served.

    Raises:
        UserError: if it was withdrawn, or pointer or version are not what the host trusts.
    """
    name, version = pointer.name, pointer.version
    if trust is not None and (differences := trust.in_pointer(store, name, version)):
        raise UserError(f"{name} {version} is not served here: {'; '.join(differences)}")
    return open_version(store, name, version, pointer.manifest_sha256, trust)


def _find(store: Store, name: str | None, wait: bool) -> ReleasePointer:
    announced = False
    while (pointer := newest_release(store, name)) is None:
        if not wait:
            raise UserError(
                f"{store.uri} holds no released model{f' named {name}' if name else ''}; "
                "a run of finetune_to_production makes one"
            )
        if not announced:
            print(f"waiting for a released model in {store.uri}", flush=True)
            announced = True
        time.sleep(_LOOK_SECONDS)
    return pointer
