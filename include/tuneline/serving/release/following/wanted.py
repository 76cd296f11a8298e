"""What a store wants served: the released version of each model, and what it falls back to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuneline.artifacts.releases import previous_version, read_release
from tuneline.store import Store

_POINTER = "production.json"


@dataclass(frozen=True)
class Wanted:
    """What is to be served of one model.

    Attributes:
        name: the model.
        version: the released version.
        previous: the version that its requests fall back to, None if there is none.
    """

    name: str
    version: str
    previous: str | None


def wanted_of(store: Store, names: Sequence[str]) -> list[Wanted]:
    """Return what is to be served of models, in their order; those without a release are left out.

    Raises:
        CorruptObject: if a pointer's bytes are not those that were written.
        RetryableError: if the store can't be read now.
    """
    found = []
    for name in names:
        pointer = read_release(store, name)
        if pointer is not None:
            found.append(Wanted(name, pointer.version, previous_version(pointer)))
    return found


def model_names(store: Store) -> list[str]:
    """Return the names of all models of a store that have a release."""
    keys = (key.split("/") for key in store.keys("models"))
    return sorted({key[1] for key in keys if len(key) == 3 and key[2] == _POINTER})
