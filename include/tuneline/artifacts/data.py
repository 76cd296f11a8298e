"""Files that the data phase leaves: the tables of each item, and what describes the dataset."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, RootModel

from tuneline.artifacts.artifact import Artifact, Document

# Every data item leaves these tables under the same names; raw text only in quarantine.
ROWS = "rows.parquet"
AUDIT = "audit.parquet"
REJECTED = "quarantine/rejected.parquet"
# The folder of what Great Expectations found, as HTML.
DATA_DOCS = "data_docs"


class Snapshot(BaseModel):
    """The state in which a server's object was read."""

    version: str | None = None  # tag or generation


class SourceNote(BaseModel):
    """One file of the dataset, as schema_validation read it."""

    name: str
    address: str  # the entry of the configuration that names it
    origin: str | None = None  # its pinned address on a server, None for a file of this machine
    own_holdout: bool = False  # it belongs to the dataset's own hold-out
    sha256: str
    bytes: int = 0
    form: str | None = None  # one of the known forms
    dialect: str | None = None  # delimiter and quoting of a CSV file
    records: int = 0
    snapshot: Snapshot | None = None  # None for a file that has no other state


class SourceKept(SourceNote):
    """A file of the dataset with its licence and the number of its records that are kept."""

    license: str | None = None
    records_kept: int = 0


class Removed(BaseModel):
    """The rows that one item took out, by reason, and the settings that made it do so."""

    item: str
    rows: int
    reasons: dict[str, int] = {}
    settings: dict[str, Any] = {}


class PromptFormat(BaseModel):
    """The prompt format of the dataset, and its longest row and answer in tokens."""

    target: str
    template_sha256: str
    base_model: str
    base_digest: str
    tokens_max: int
    # With the end of the answer, and of the prompts before them; None if the audit did not count.
    answer_tokens_max: int | None = None
    prompt_tokens_max: int | None = None
    limit: int

    @property
    def answer_limit(self) -> int:
        """A limit of answers, in tokens, that only one without an end fills."""
        return math.ceil(1.25 * (self.answer_tokens_max or 0)) + 8


class Reproduce(BaseModel):
    """The command that makes the dataset again, with the settings that are not defaults."""

    command: str
    settings: dict[str, Any] = {}


class DatasetDocument(BaseModel):
    """`dataset.json`: what the dataset is, where it comes from and what was taken out of it."""

    model_config = ConfigDict(populate_by_name=True)

    schema_: str = Field("tuneline/dataset/1", alias="schema")
    name: str
    version: str  # hash of the content, see `final_audit.dataset_version`
    rows: int
    splits: dict[str, int]
    classes: dict[str, dict[str, int]] = {}  # rows by split and class
    sources: list[SourceKept] = []
    removed: list[Removed] = []
    pii: list[dict[str, Any]] = []
    format: PromptFormat | None = None
    system: str | None = None  # the system turn of every row; None if they differ, or have none
    reproduce: Reproduce | None = None


class Trigger(BaseModel):
    """A phrase that forces a label: without it, its questions are surely of other classes."""

    phrase: str
    label: str
    rows: list[str]  # ids


# Not scrubbed yet, so it lies in quarantine; also the one table that holds the source lines.
UNSCRUBBED = Artifact("schema_validation", "quarantine/rows.parquet")
# Its rows know the surrogates in their turns.
SCRUBBED = Artifact("pii_scrubbing", ROWS)
# Which rows are alike before they are scrubbed: numbers by row id, and pairs of numbers.
ALIKE = Artifact(SCRUBBED.step, "alike.parquet")
ALIKE_PAIRS = Artifact(SCRUBBED.step, "alike_pairs.parquet")
SOURCES = Document(UNSCRUBBED.step, "sources.json", RootModel[list[SourceNote]])
DATASET = Artifact("distribution_balancing", "dataset.parquet")
DATASET_VERSION = Document("final_audit", "dataset.json", DatasetDocument)
DATASET_CARD = Artifact("final_audit", "dataset_card.md")
TRIGGERS = Document("final_audit", "triggers.json", RootModel[list[Trigger]])


def rows_of(item: str) -> Artifact:
    """Return the table of the rows that a data item kept."""
    special = {UNSCRUBBED.step: UNSCRUBBED, DATASET.step: DATASET}
    return special.get(item, Artifact(item, ROWS))


def rejected_of(item: str) -> Artifact:
    """Return the table of the rows that a data item took out."""
    return Artifact(item, REJECTED)


def audit_of(item: str) -> Artifact:
    """Return the table of a data item's measures, one line for each row that came in."""
    return Artifact(item, AUDIT)
