"""The artifacts of fetch_base: a run's pinned base model, and the licences of its detectors."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from tuneline.artifacts.artifact import Document, FileName


class StoredFile(BaseModel):
    """One file of a base model.

    Attributes:
        sha256: hash of its bytes.
        bytes: its size, bytes.
        mtime_ns: its time of modification when it was hashed, for a file in a directory.
    """

    sha256: str
    bytes: int
    mtime_ns: int | None = None


class StoredBase(BaseModel):
    """`base.json`: a base model where every pod finds it, described as `models.BaseModel` is.

    Attributes:
        place: URI of the folder that holds its files.
        files: its files by name.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    uri: str
    place: str
    digest: str
    license: str | None
    license_source: str
    revision: str
    architecture: str
    context_length: int
    vocab_size: int
    files: dict[FileName, StoredFile]


class DetectorLicense(BaseModel):
    """The licence of a model that finds personal data.

    Attributes:
        address: where the model comes from.
        license: SPDX identifier, None if none is stated.
        license_source: where it is stated, or the places that were searched.
    """

    address: str
    license: str | None
    license_source: str


class Detectors(BaseModel):
    """`detectors.json`: the models that find personal data in the rows of a run."""

    models: list[DetectorLicense] = []


BASE = Document("fetch_base", "base.json", StoredBase)
DETECTORS = Document("fetch_base", "detectors.json", Detectors)
