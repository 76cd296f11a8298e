"""Observe what a step reads of the steps before it and of the configuration.

What is observed goes into the step's evidence (`reads`), so that `freshness` can say later whether
the evidence still rests on what the run holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import PrivateAttr

from tuneline.catalogue import steps_after
from tuneline.config import PipelineConfig
from tuneline.evidence import Evidence, Read, Record

# What `Read.step` and `Read.name` say where no file was read.
CONFIG, MEASUREMENTS = "config", "measurements"
_SECTIONS = frozenset(PipelineConfig.model_fields)


class Reads:
    """What a step at work has read, in the order of its first look.

    Args:
        step: id of the step. What it left itself before, and what the steps after it left, are no
            inputs: a later run of these must not make it out of date.
    """

    def __init__(self, step: str) -> None:
        self._others = {step} | steps_after(step)
        self._found: dict[tuple[str, str], str | None] = {}

    def note(self, step: str, name: str, sha256: str | None) -> None:
        """Note a look at something of an earlier step.

        Args:
            step: the step that left it.
            name: name of the artifact, or `MEASUREMENTS`.
            sha256: its hash; None if it was not there.
        """
        if step not in self._others:
            self._found[step, name] = sha256

    def listed(self) -> list[Read]:
        """Return what was read."""
        return [Read(step=s, name=n, sha256=digest) for (s, n), digest in self._found.items()]


class ObservedConfig(PipelineConfig):
    """A configuration that notes which of its sections are read."""

    _reads: Reads = PrivateAttr()
    _hashes: Mapping[str, str] = PrivateAttr()

    @classmethod
    def of(cls, config: PipelineConfig, hashes: Mapping[str, str], reads: Reads) -> ObservedConfig:
        """Return a configuration as a step sees it.

        Args:
            config: the run's configuration.
            hashes: the hash of each of its sections.
            reads: where to note the sections that are read.
        """
        values = {name: getattr(config, name) for name in _SECTIONS}
        observed = cls.model_construct(**values)
        observed._reads, observed._hashes = reads, hashes
        return observed

    def __getattribute__(self, name: str) -> Any:
        if name in _SECTIONS:
            self._reads.note(CONFIG, name, self._hashes.get(name))
        return super().__getattribute__(name)


def hash_sections(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of each section of `config.json`, as it is written there."""
    return {name: _sha256(section) for name, section in document.items()}


def hash_measurements(entry: Evidence | Record) -> str:
    """Return the SHA-256 of the verdict and the measurements of a step.

    Times that only inform are left out: they differ whenever a step is run again.
    """
    return _sha256(
        {
            "verdict": getattr(entry, "verdict", None),
            "measurements": [
                m.model_dump(mode="json")
                for m in entry.measurements
                if m.unit != "s" or m.rule is not None
            ],
        }
    )


def _sha256(content: Any) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
