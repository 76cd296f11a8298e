"""The environments of a run's steps: lists of packages, and images of pods.

A list of packages lies once under `environments/` of the run, named by its hash, which evidence
states. The image of each step's pod lies under `images/`, as the cluster reported it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, RootModel

from tuneline.artifacts.artifact import RunDocument
from tuneline.run import Run
from tuneline.surroundings import all_packages, hash_packages


class Packages(RootModel[dict[str, str]]):
    """Version by package, of everything that a process could import."""


class PodImage(BaseModel):
    """The image that a step's pod ran, by the status of the pod.

    Attributes:
        image: its name, as the pod asked for it.
        image_id: what the cluster ran, in most clusters the name with the digest.
        pod: name of the pod.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    image: str
    image_id: str
    pod: str = ""


def image_of(step: str) -> RunDocument[PodImage]:
    """Return the document that says which image the pod of a step ran."""
    return RunDocument(f"images/{step}.json", PodImage)


def keep_packages(run: Run, environment: Mapping[str, Any]) -> None:
    """Keep the packages of this process in the run, if they are those of an environment."""
    digest = environment.get("packages_sha256")
    installed = all_packages()
    if digest != hash_packages(installed):
        return
    key = _packages(str(digest)).key(run)
    if not run.store.exists(key):
        run.store.put_bytes(key, json.dumps(installed).encode())


def find_packages(run: Run, environment: Mapping[str, Any]) -> dict[str, str]:
    """Return every package of an environment; those of its evidence where no more are known."""
    found = _packages(str(environment.get("packages_sha256"))).find(run)
    stated: dict[str, str] = environment.get("packages", {})
    return stated if found is None else found.root


def _packages(digest: str) -> RunDocument[Packages]:
    return RunDocument(f"environments/{digest}.json", Packages)
