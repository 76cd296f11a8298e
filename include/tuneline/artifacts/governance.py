"""What the governance phase leaves."""

from __future__ import annotations

from tuneline.artifacts.artifact import Artifact

MANIFEST_REF = Artifact("lineage", "manifest_ref.json")
