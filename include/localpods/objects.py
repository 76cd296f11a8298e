"""Shapes and times that every part of the API shares."""

from __future__ import annotations

import datetime
import secrets
from typing import Any

# A Kubernetes object as it is sent: JSON with camelCase keys.
Json = dict[str, Any]

NODE_NAME = "localpods"
LOOPBACK = "127.0.0.1"

# The letters that Kubernetes uses for generated names: without vowels, so they form no words.
_NAME_LETTERS = "bcdfghjklmnpqrstvwxz2456789"


def now() -> str:
    """Return the current time as Kubernetes writes it: RFC 3339, UTC, whole seconds."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_since(time: str) -> float:
    """Return the seconds that have passed since an RFC 3339 time."""
    then = datetime.datetime.fromisoformat(time)
    return (datetime.datetime.now(datetime.UTC) - then).total_seconds()


def name_suffix() -> str:
    """Return five random letters for a generated name."""
    return "".join(secrets.choice(_NAME_LETTERS) for _ in range(5))


def uid_of(obj: Json) -> str:
    """Return an object's UID."""
    return str(obj["metadata"]["uid"])


def key_of(obj: Json) -> tuple[str, str]:
    """Return an object's namespace and name."""
    return str(obj["metadata"]["namespace"]), str(obj["metadata"]["name"])


def phase_of(pod: Json) -> str:
    """Return a pod's phase."""
    return str(pod["status"]["phase"])


def is_finished(pod: Json) -> bool:
    """Return True if a pod has succeeded or failed."""
    return phase_of(pod) in ("Succeeded", "Failed")


def is_deleting(obj: Json) -> bool:
    """Return True if an object's deletion has been requested."""
    return "deletionTimestamp" in obj["metadata"]


def describe(pod: Json) -> str:
    """Return a pod's name for the server's log."""
    return f"{'/'.join(key_of(pod))} ({uid_of(pod)[:8]})"
