"""Releases as promotion leaves them."""

import json
from collections.abc import Mapping
from typing import Any


def point(store: Any, name: str, version: str, at: str = "2026-10-02T00:00:00Z") -> None:
    """Point a model's name at a version."""
    pointer = {"name": name, "version": version, "released_at": at}
    store.put_bytes(f"models/{name}/production.json", json.dumps(pointer).encode())


def release(store: Any, files: Mapping[str, bytes]) -> None:
    """Release version 1 of the model a, whose manifest names these files."""
    stated = [
        {"name": name, "sha256": store.put_bytes(f"models/a/1/{name}", content).sha256}
        for name, content in files.items()
    ]
    store.put_bytes("models/a/1/manifest.json", json.dumps({"files": stated}).encode())
    point(store, "a", "1")
