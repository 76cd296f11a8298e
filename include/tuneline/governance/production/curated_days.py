"""A curated day in the store: `curated/<model>/<day>/`, replaced whole or not at all.

`current.json`, written last, names the folder in force: `<hash of its evidence>-<generation>`.
The folder before stays until the one after next, for whoever is still reading it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from tuneline.artifacts.data import DATA_DOCS
from tuneline.artifacts.request_log import folder_name
from tuneline.errors import RetryableError, UserError
from tuneline.evidence import FileRef, Measurement, Verdict
from tuneline.governance.production.requests import batches_of
from tuneline.store import NotThere, Store

PREFIX = "curated"
EVIDENCE, REQUESTS = "evidence.json", "requests.parquet"
SCHEMA: Literal["tuneline/curated/2"] = "tuneline/curated/2"
_POINTER = "current.json"
_TRIES = 3
_POINTER_SCHEMA = "tuneline/curated-pointer/1"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class StoredFile(_Strict):
    """A file of a curated day; its place is the folder of the evidence."""

    name: str
    sha256: str
    bytes: int
    rows: int


class StratumCount(BaseModel):
    """The rows of a stratum, and how many of them were drawn for review."""

    rows: int
    in_review: int


class CurationEvidence(_Strict):
    """The evidence of a curated day. It holds no time, so that equal input gives equal bytes."""

    schema_: Literal["tuneline/curated/2"] = Field(default=SCHEMA, alias="schema")
    model: str
    day: str
    verdict: Verdict
    summary: str
    requests_in: int
    rows_kept: int  # of `requests.parquet`, without a reason
    rejected: dict[str, int] = {}  # requests that are not rows, by reason
    redactions: dict[str, dict[str, int]] = {}  # by the gateway, by curation
    strata: dict[str, StratumCount] = {}
    measurements: list[Measurement] = []
    inputs: list[FileRef] = []  # parts of the log, earlier curated days, base model and reference
    files: list[StoredFile] = []
    settings: dict[str, Any] = {}
    code: dict[str, Any] = {}

    def dump(self) -> bytes:
        """Return its bytes in the store."""
        document = self.model_dump(mode="json", by_alias=True)
        return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode()


@dataclass(frozen=True)
class CuratedDay:
    """A curated day that is in force; the hash of its evidence stands for all of it."""

    store: Store
    prefix: str
    evidence: CurationEvidence
    evidence_sha256: str  # stands for all of it

    @property
    def uri(self) -> str:
        """The URI of its folder."""
        return self.store.uri_of(self.prefix)

    @property
    def ref(self) -> FileRef:
        """A reference to its evidence."""
        return FileRef(
            name=f"curated/{self.evidence.day}",
            uri=self.store.uri_of(f"{self.prefix}/{EVIDENCE}"),
            sha256=self.evidence_sha256,
            bytes=len(self.evidence.dump()),
            rows=self.evidence.rows_kept,
        )

    def fetch(self, path: Path) -> bool:
        """Copy the table of its requests, verified; return False if it has none."""
        for file in self.evidence.files:
            self.store.get_file(f"{self.prefix}/{file.name}", path, sha256=file.sha256)
        return bool(self.evidence.files)

    def requests(self, scratch: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield columns of its requests, some rows at a time."""
        path = scratch / f"{self.evidence.day}-{REQUESTS}"
        if self.fetch(path):
            yield from batches_of(path, columns)
            path.unlink()


def check_model(model: str) -> str:
    """Return the name of a model if it can be one; UserError if it can't."""
    named = model.strip() == model and model.strip(".") and model.isprintable()
    if not named or len(model) > 200:
        raise UserError(
            f"--model {model[:80]!r} is not the name of a model; give it as clients send it, "
            "without spaces around it"
        )
    return model


def parse_day(text: str) -> date:
    """Return the day of a text; UserError if it is none."""
    with suppress(ValueError):
        if (day := date.fromisoformat(text)).isoformat() == text:
            return day
    raise UserError(f"{text!r} is not a day; write it as YYYY-MM-DD")


def curated_days(store: Store, model: str) -> list[date]:
    """Return the days that are curated, the earliest first."""
    prefix = f"{PREFIX}/{folder_name(model)}"
    found = [
        key.removeprefix(f"{prefix}/").split("/")
        for key in store.keys(prefix)
        if key.endswith(f"/{_POINTER}")
    ]
    return sorted(date.fromisoformat(parts[0]) for parts in found if len(parts) == 2)


def open_day(store: Store, model: str, day: date) -> CuratedDay | None:
    """Return a curated day, None without one; UserError if an earlier version curated it."""
    root = _root(model, day)
    try:
        return _open(store, root)
    except NotThere:
        # Another run has put a day in its place since the pointer was read.
        return _open(store, root)


def open_days(store: Store, model: str, days: Iterable[date]) -> Iterator[CuratedDay]:
    """Yield the curated days with rows (see `open_current`)."""
    for day in days:
        found = open_current(store, model, day)
        if found is not None and found.evidence.rows_kept:
            yield found


def open_current(store: Store, model: str, day: date) -> CuratedDay | None:
    """Return a curated day; one of an earlier version is named on stderr and left out."""
    try:
        return open_day(store, model, day)
    except UserError as error:
        print(f"tuneline: left out: {error}", file=sys.stderr)
        return None


def publish(
    store: Store, model: str, day: date, evidence: CurationEvidence, files: Path
) -> CuratedDay:
    """Put a curated day in the place of the one before; equal content writes nothing.

    `files` is the folder with the files that the evidence lists, and what the gate left in `gx`.
    """
    # Not for whoever only reads a day: the gates know all of the data phase.
    from tuneline.data.gates.expectations import store_docs

    root = _root(model, day)
    before = _pointer(store, root)
    raw = evidence.dump()
    digest = hashlib.sha256(raw).hexdigest()
    generation = before.get("generation", 0) + 1
    names = [EVIDENCE, *(file.name for file in evidence.files)]
    if before.get("evidence_sha256") == digest:
        made = CuratedDay(store, f"{root}/{before['folder']}", evidence, digest)
        if all(store.exists(f"{made.prefix}/{name}") for name in names):
            return made
    folder = f"{digest[:16]}-{generation}"
    made = CuratedDay(store, f"{root}/{folder}", evidence, digest)
    (files / EVIDENCE).write_bytes(raw)
    _put(made, names, files, anew=True)
    store_docs(store, f"{made.prefix}/{DATA_DOCS}", files / "gx")
    document = {
        "schema": _POINTER_SCHEMA,
        "generation": generation,
        "folder": folder,
        "evidence_sha256": digest,
    }
    store.flush()
    store.put_bytes(f"{root}/{_POINTER}", json.dumps(document, indent=1).encode())
    store.flush()
    # A run that began long ago may find its folder swept by a later one.
    _put(made, names, files)
    # The folders of the generations before the last one go; what another run deletes meanwhile is
    # gone, which is all that is wanted.
    with suppress(FileNotFoundError):
        inside = (key.removeprefix(f"{root}/").partition("/") for key in list(store.keys(root)))
        for name in sorted({name for name, below, _ in inside if below}):
            number = name.rpartition("-")[2]
            if number.isdigit() and int(number) < generation - 1:
                store.delete_prefix(f"{root}/{name}")
    return made


def _root(model: str, day: date) -> str:
    return f"{PREFIX}/{folder_name(model)}/{day.isoformat()}"


def _pointer(store: Store, root: str) -> dict[str, Any]:
    """Return what is in force, empty if nothing is."""
    found: dict[str, Any] = {}
    with suppress(NotThere):
        found = json.loads(store.get_bytes(f"{root}/{_POINTER}"))
    return found


def _open(store: Store, root: str) -> CuratedDay | None:
    pointer = _pointer(store, root)
    if not pointer:
        return None
    prefix, digest = f"{root}/{pointer['folder']}", pointer["evidence_sha256"]
    raw = store.get_bytes(f"{prefix}/{EVIDENCE}", sha256=digest)
    if json.loads(raw).get("schema") != SCHEMA:
        raise UserError(
            f"{store.uri_of(root)} was curated by an earlier version of Tuneline; run `tuneline "
            "logs curate` for this day again"
        )
    return CuratedDay(store, prefix, CurationEvidence.model_validate_json(raw), digest)


def _put(day: CuratedDay, names: Sequence[str], files: Path, *, anew: bool = False) -> None:
    """Write the files that the folder lacks, or all of them."""
    for left in reversed(range(_TRIES)):
        try:
            for name in names:
                key = f"{day.prefix}/{name}"
                if anew or not day.store.exists(key):
                    day.store.put_file(key, files / name)
        except (RetryableError, FileNotFoundError) as error:
            if not left:
                raise RetryableError(f"{day.uri} can't be written: {error}") from error
        else:
            return
