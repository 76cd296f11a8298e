"""What the data phase leaves."""

from __future__ import annotations

from tuneline.artifacts.artifact import Artifact

DATASET = Artifact("distribution_balancing", "dataset.parquet")
DATASET_VERSION = Artifact("final_audit", "dataset.json")
DATASET_CARD = Artifact("final_audit", "dataset_card.md")
SOURCES = Artifact("schema_validation", "sources.json")
# Not scrubbed yet, so it lies in quarantine.
UNSCRUBBED = Artifact("schema_validation", "quarantine/rows.parquet")
