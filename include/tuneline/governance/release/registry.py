"""Register a released version in MLflow's registry, where a tracking server is configured.

The registry is a copy for those who look there; a server that is away stops no release.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tuneline.artifacts.governance import ManifestRef, ReleasePointer
from tuneline.artifacts.releases import pointer_of
from tuneline.artifacts.training import SYNCED, TRAINED
from tuneline.errors import first_line
from tuneline.evidence import Measurement, measure
from tuneline.machine.mlflow_client import mlflow_client
from tuneline.machine.redaction import redact
from tuneline.run import Run

SERVER = "MLFLOW_TRACKING_URI"
_VERSION, _MANIFEST, _SHA256, _RUN = (
    f"tuneline.{key}" for key in ("version", "manifest", "manifest_sha256", "run")
)


def register(run: Run, reference: ManifestRef) -> tuple[str, list[Measurement]]:
    """Register the version that a run has released, under the pointer's name as its alias."""
    uri = os.environ.get(SERVER)
    if not uri:
        return "", []
    try:
        number = _register(mlflow_client(uri), run, reference)
    except Exception as error:  # whatever breaks there, the release stands
        why = redact(first_line(error))
        return (
            f"; MLflow's registry does not have it ({why}); run promote again when it can be "
            "reached",
            [_registered(False)],
        )
    return f"; MLflow has it as version {number}", [_registered(True)]


def move_alias(pointer: ReleasePointer) -> str:
    """Have the registry name the version that a pointer went back to."""
    uri = os.environ.get(SERVER)
    if not uri:
        return ""
    try:
        client = mlflow_client(uri)
        number = _find(client, pointer.name, {_SHA256: pointer.manifest_sha256})
        if number is None:
            return f"; MLflow's registry has no {pointer.version}"
        client.set_registered_model_alias(pointer.name, pointer.pointer, number)
    except Exception as error:  # whatever breaks there, the release stands
        why = redact(first_line(error))
        return f"; MLflow's registry still names {pointer.previous_version} ({why})"
    return ""


def _registered(done: bool) -> Measurement:
    return measure("registered_in_mlflow", done, "flag", "==", True, on_breach="warn")


def _register(client: Any, run: Run, reference: ManifestRef) -> str:
    """Return the number of the version in the registry, where the alias points to it."""
    name = run.config.name
    tags = {
        _VERSION: reference.version,
        _MANIFEST: reference.uri,
        _SHA256: reference.sha256,
        _RUN: run.uri,
    }
    number = _find(client, name, tags) or _create(client, run, name, tags)
    client.set_registered_model_alias(name, pointer_of(run.config.profile), number)
    return number


def _find(client: Any, name: str, tags: Mapping[str, str]) -> str | None:
    """Return the number of a version that an earlier try registered; None if there is none."""
    for version in client.search_model_versions(f"name='{name}'"):
        if version.tags.get(_SHA256) == tags[_SHA256]:
            return str(version.version)
    return None


def _create(client: Any, run: Run, name: str, tags: Mapping[str, str]) -> str:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description="Released by Tuneline")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    folder = tags[_MANIFEST].rpartition("/")[0]
    made = client.create_model_version(
        name,
        # MLflow refuses folders of a machine.
        source=f"tuneline-{folder}" if folder.startswith("file:") else folder,
        run_id=_training_of(run),
        tags=dict(tags),
        description=f"{tags[_VERSION]}; `tuneline verify {tags[_MANIFEST]}` checks it",
    )
    return str(made.version)


def _training_of(run: Run) -> str | None:
    """Return the run in MLflow that logged the training; None if none did."""
    trained, synced = TRAINED.find(run), SYNCED.find(run)
    runs = [*(synced.tracking if synced else []), *(trained.tracking if trained else [])]
    found = (entry.run_id for entry in runs if entry.tracker == "mlflow" and entry.mode == "online")
    return next(found, None)
