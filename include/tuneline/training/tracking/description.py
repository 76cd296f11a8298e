"""What trackers are told of a run besides its metrics: no secret, no path of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from tuneline.run import Run

# Length of the dataset's hash in tags, as people compare it.
_VERSION_DIGITS = 16


@dataclass(frozen=True)
class Description:
    """A run as trackers show it.

    Attributes:
        project: experiment in MLflow, project in Weights & Biases.
        name: what people read.
        key: stable over retries, so that a resumed training goes on in the same run.
        settings: hyperparameters.
        tags: where it belongs: run, dataset.
    """

    project: str
    name: str
    key: str
    settings: Mapping[str, Any]
    tags: Mapping[str, str]


def describe(
    run: Run, *, key: str, settings: Mapping[str, Any], dataset_sha256: str
) -> Description:
    """Describe the training of a run to trackers."""
    tags = {"tuneline.run_id": run.run_id, "tuneline.dataset": dataset_sha256[:_VERSION_DIGITS]}
    if not run.uri.startswith("file:"):
        tags["tuneline.run"] = run.uri
    return Description(
        project=run.config.training.tracking_project,
        name=run.run_id,
        key=key,
        settings={name: without_path(value) for name, value in settings.items()},
        tags=tags,
    )


def without_path(value: Any) -> Any:
    """A value; of a path on this machine its last part, which names the model or file."""
    if isinstance(value, str) and (value.startswith(("/", "~", "./", "../", "file:"))):
        return value.rstrip("/").rsplit("/", 1)[-1]
    return value


def without_password(address: str) -> str:
    """An address that can be shown: user and password are left out."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
