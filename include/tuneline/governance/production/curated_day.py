"""A curated day in the store: `curated/<model>/<day>/`, replaced whole or not at all.

    current.json                 the folder in force; written last, in one piece
    <content>-<generation>/      evidence.json and the files that it lists

A folder is named after its evidence, which holds the hash of every file, and after its generation,
one more than that of the folder before. A killed run leaves an unfinished folder that no pointer
names; the next run overwrites or removes it. The folder before stays until the one after next, for
whoever is still reading it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tuneline.artifacts.request_log import folder_name
from tuneline.errors import RetryableError, UserError
from tuneline.evidence import FileRef, Measurement, Verdict
from tuneline.store import NotThere, Store

PREFIX = "curated"
EVIDENCE, CURATED, REJECTED, REVIEW = (
    "evidence.json",
    "curated.parquet",
    "rejected.parquet",
    "review.jsonl",
)
SCHEMA: Literal["tuneline/curated/1"] = "tuneline/curated/1"
_POINTER = "current.json"
_POINTER_SCHEMA = "tuneline/curated-pointer/1"
# A switch during a read is seen when the files are gone; reading again then finds the new ones.
_TRIES = 3


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class StoredFile(_Strict):
    """A file of a curated day; its place is the folder of the evidence."""

    name: str
    sha256: str
    bytes: int
    rows: int


class StratumCount(_Strict):
    """The rows of a stratum, and how many of them were drawn for review."""

    rows: int
    in_review: int
    inclusion_probability: float | None


class CurationEvidence(_Strict):
    """The evidence of a curated day. It holds no time, so that equal input gives equal bytes.

    Attributes:
        schema_: `tuneline/curated/1`.
        model: the model that clients asked for.
        day: the day, YYYY-MM-DD.
        verdict: not_applicable without logged requests.
        summary: one sentence for a person.
        requests_in: logged requests.
        rows_kept: rows of `curated.parquet`.
        rejected: number of requests that are no row, by reason.
        redactions: number of removed values by type: by the gateway, and by this curation.
        strata: the review sample.
        measurements: what was measured, and the rules that it had to satisfy.
        inputs: parts of the log, earlier curated days, base model and reference.
        files: what was written.
        settings: what the result depends on besides.
        code: the code that ran.
    """

    schema_: Literal["tuneline/curated/1"] = Field(default=SCHEMA, alias="schema")
    model: str
    day: str
    verdict: Verdict
    summary: str
    requests_in: int
    rows_kept: int
    rejected: dict[str, int] = {}
    redactions: dict[str, dict[str, int]] = {}
    strata: dict[str, StratumCount] = {}
    measurements: list[Measurement] = []
    inputs: list[FileRef] = []
    files: list[StoredFile] = []
    settings: dict[str, Any] = {}
    code: dict[str, Any] = {}

    def dump(self) -> bytes:
        """Return its bytes in the store."""
        document = self.model_dump(mode="json", by_alias=True)
        return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode()


@dataclass(frozen=True)
class _Pointer:
    generation: int
    folder: str
    evidence_sha256: str


@dataclass(frozen=True)
class CuratedDay:
    """A curated day that is in force.

    Attributes:
        store: the store.
        prefix: key of its folder.
        evidence: its evidence.
        evidence_sha256: hash of the evidence, which stands for all of it.
    """

    store: Store
    prefix: str
    evidence: CurationEvidence
    evidence_sha256: str

    @property
    def uri(self) -> str:
        """The URI of its folder."""
        return self.store.uri_of(self.prefix)

    def fetch(self, name: str, path: Path) -> bool:
        """Copy one of its files, verified; return False if it has none of that name.

        Raises:
            CorruptObject: if the bytes are not the ones that the evidence states.
        """
        for file in self.evidence.files:
            if file.name == name:
                self.store.get_file(f"{self.prefix}/{name}", path, sha256=file.sha256)
                return True
        return False

    def rows(self, name: str) -> int:
        """Return the number of rows of one of its files, 0 without that file."""
        return next((file.rows for file in self.evidence.files if file.name == name), 0)


def check_model(model: str) -> str:
    """Return the name of a model if it can be one.

    Raises:
        UserError: if it can't.
    """
    named = model.strip() == model and model.strip(".") and model.isprintable()
    if not named or len(model) > 200:
        raise UserError(
            f"--model {model[:80]!r} is not the name of a model; give it as clients send it, "
            "without spaces around it"
        )
    return model


def parse_day(text: str) -> date:
    """Return the day of a text.

    Raises:
        UserError: if it is none.
    """
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = None
    if day is None or day.isoformat() != text:
        raise UserError(f"{text!r} is not a day; write it as YYYY-MM-DD")
    return day


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
    """Return a curated day, None if it is not curated.

    Raises:
        CorruptObject: if its evidence is not the one that was written.
    """
    root = _root(model, day)
    for left in reversed(range(_TRIES)):
        pointer = _pointer(store, root)
        if pointer is None:
            return None
        prefix = f"{root}/{pointer.folder}"
        try:
            raw = store.get_bytes(f"{prefix}/{EVIDENCE}", sha256=pointer.evidence_sha256)
        except NotThere:
            if not left:
                raise
            continue
        evidence = CurationEvidence.model_validate_json(raw)
        return CuratedDay(store, prefix, evidence, pointer.evidence_sha256)
    return None


def publish(
    store: Store, model: str, day: date, evidence: CurationEvidence, files: Path
) -> CuratedDay:
    """Put a curated day in the place of the one before.

    Args:
        store: the store.
        model: the model.
        day: the day.
        evidence: its evidence; it lists the files.
        files: the local folder with them.

    Returns:
        The day as it is in the store. If its content is what is there already, nothing is written.
    """
    root = _root(model, day)
    before = _pointer(store, root)
    raw = evidence.dump()
    digest = hashlib.sha256(raw).hexdigest()
    names = [EVIDENCE, *(file.name for file in evidence.files)]
    if before is not None and before.evidence_sha256 == digest:
        prefix = f"{root}/{before.folder}"
        if all(store.exists(f"{prefix}/{name}") for name in names):
            return CuratedDay(store, prefix, evidence, digest)
    generation = before.generation + 1 if before else 1
    pointer = _Pointer(generation, f"{digest[:16]}-{generation}", digest)
    prefix = f"{root}/{pointer.folder}"
    (files / EVIDENCE).write_bytes(raw)
    _put_missing(store, prefix, files, names, anew=True)
    document = {"schema": _POINTER_SCHEMA, **asdict(pointer)}
    store.flush()
    store.put_bytes(f"{root}/{_POINTER}", json.dumps(document, indent=1).encode())
    store.flush()
    # A run that began long ago may find its folder swept by a later one.
    _put_missing(store, prefix, files, names)
    _sweep(store, root, generation)
    return CuratedDay(store, prefix, evidence, digest)


def _root(model: str, day: date) -> str:
    return f"{PREFIX}/{folder_name(model)}/{day.isoformat()}"


def _pointer(store: Store, root: str) -> _Pointer | None:
    try:
        document = json.loads(store.get_bytes(f"{root}/{_POINTER}"))
    except NotThere:
        return None
    return _Pointer(
        int(document["generation"]), str(document["folder"]), str(document["evidence_sha256"])
    )


def _put_missing(
    store: Store, prefix: str, files: Path, names: Sequence[str], *, anew: bool = False
) -> None:
    """Write the files that the folder lacks, or all of them."""
    for left in reversed(range(_TRIES)):
        try:
            for name in names:
                if anew or not store.exists(f"{prefix}/{name}"):
                    store.put_file(f"{prefix}/{name}", files / name)
        except (RetryableError, FileNotFoundError) as error:
            if not left:
                raise RetryableError(f"{store.uri_of(prefix)} can't be written: {error}") from error
        else:
            return


def _sweep(store: Store, root: str, generation: int) -> None:
    """Delete the folders of the generations before the last one."""
    # What another run deletes meanwhile is gone, which is all that is wanted.
    with suppress(FileNotFoundError):
        _delete_older(store, root, generation)


def _delete_older(store: Store, root: str, generation: int) -> None:
    for folder in sorted(set(_folders(store, root))):
        number = folder.rpartition("-")[2]
        if number.isdigit() and int(number) < generation - 1:
            store.delete_prefix(f"{root}/{folder}")


def _folders(store: Store, root: str) -> Iterator[str]:
    for key in store.keys(root):
        folder, inside, _ = key.removeprefix(f"{root}/").partition("/")
        if inside:
            yield folder
