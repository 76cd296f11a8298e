"""Helm charts, as a cluster gets them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from tests.lab.commands import call

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "tuneline"
PROGRAMS = ROOT / ".venv-dev" / "bin"
# What the chart can't know.
NAMED = {"image": "registry.example.com/ml:1.2", "store": "s3://bucket/tuneline"}


def rendered(
    folder: Path,
    values: Mapping[str, Any] = NAMED,
    chart: Path = CHART,
    *,
    more: Iterable[Path] = (),
) -> tuple[Path, str]:
    """The file of manifests that a chart makes of values, and what helm says against them."""
    own = folder / "values.yaml"
    own.write_text(json.dumps(values))
    files = [word for path in (*more, own) for word in ("--values", path)]
    name = "tuneline" if chart == CHART else "airflow"
    done = call(PROGRAMS / "helm", "template", name, chart, "--namespace", "ml", *files)
    made = folder / "manifests.yaml"
    made.write_text(done.stdout)
    return made, done.stderr


def objects(made: Path) -> list[dict[str, Any]]:
    """The manifests of a file."""
    return [document for document in yaml.safe_load_all(made.read_text()) if document]


def faults(made: Path, version: str = "1.34") -> list[str]:
    """What the API server of a version of Kubernetes would refuse, by its published schemas."""
    words = ("--kubernetes-version", version, "--strict", "--quiet", made)
    done = call(PROGRAMS / "kubernetes-validate", *words)
    return [line.partition(" ")[2] for line in f"{done.stdout}{done.stderr}".splitlines()]
