"""The version of a model's data: its source files and the reviewed rows of its production logs.

Two versions are equal if every file has the bytes that it had. Nothing is fetched for it: a local
file is hashed, an object in a bucket has its ETag, a file on the hub its commit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from tuneline.data.sources.files import find_files

_NAMED = 3


class DatasetVersion(BaseModel):
    """The version of a model's data.

    Attributes:
        files: fingerprint of each file, by its address.
    """

    model_config = ConfigDict(frozen=True)

    files: dict[str, str]

    @property
    def digest(self) -> str:
        """Hex SHA-256 of all fingerprints; of 64 characters."""
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()


def dataset_version(addresses: Sequence[str]) -> DatasetVersion:
    """Return the version of the data that addresses name now.

    Raises:
        UserError: if an address names nothing, or a server refuses it.
        RetryableError: if a server failed.
    """
    return DatasetVersion(files={f.origin: f.fingerprint() for f in find_files(addresses)})


def difference(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Return what changed between the files of two versions, as part of a sentence."""
    kinds = {
        "new": sorted(new.keys() - old.keys()),
        "changed": sorted(name for name in new.keys() & old.keys() if new[name] != old[name]),
        "gone": sorted(old.keys() - new.keys()),
    }
    return "; ".join(f"{kind}: {_names(found)}" for kind, found in kinds.items() if found)


def _names(files: Sequence[str]) -> str:
    shown = ", ".join(name.rsplit("/", 1)[-1] for name in files[:_NAMED])
    more = len(files) - _NAMED
    return f"{shown} and {more} more" if more > 0 else shown
