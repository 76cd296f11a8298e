"""Shapes and instants that every part of the API shares."""

from __future__ import annotations

import datetime
import secrets
from typing import Any

# A Kubernetes object as it travels: JSON with camelCase keys.
Json = dict[str, Any]

TERMINAL_PHASES = frozenset({"Succeeded", "Failed"})
NODE_NAME = "localpods"
LOOPBACK = "127.0.0.1"

# Added by KubernetesPodOperator when a task pushes an XCom; emulated, never run.
XCOM_SIDECAR = "airflow-xcom-sidecar"

# The letters that Kubernetes uses for generated names: no vowels, so no words.
_NAME_LETTERS = "bcdfghjklmnpqrstvwxz2456789"


def now() -> str:
    """Return the current instant as Kubernetes writes it: RFC 3339, UTC, whole seconds."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def log_instant(seconds_ago: float = 0.0) -> str:
    """Return an instant in microseconds, of a fixed width so that texts compare like times."""
    instant = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds_ago)
    return instant.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def seconds_since(instant: str) -> float:
    """Return the seconds that have passed since an RFC 3339 instant."""
    then = datetime.datetime.fromisoformat(instant)
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
    """Tell whether a pod has succeeded or failed."""
    return phase_of(pod) in TERMINAL_PHASES


def is_deleting(obj: Json) -> bool:
    """Tell whether an object's deletion was asked for."""
    return "deletionTimestamp" in obj["metadata"]
