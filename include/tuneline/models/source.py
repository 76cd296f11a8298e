"""A base model at its origin: the name of its content, and its files one by one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tuneline.models.base_model import check_directory, is_model_file, is_weights
from tuneline.models.cache import Log, entry_name, require_space

# Files that are transferred at the same time.
_AT_ONCE = 4


@dataclass(frozen=True)
class Kind:
    """A kind of models.

    Attributes:
        title: what to call it in an error, or the setting that names it.
        check: refuses a directory that is not such a model.
        wanted: True for the name of a file that belongs to it.
    """

    title: str
    check: Callable[[Path], object]
    wanted: Callable[[str], bool]


BASE = Kind("base model", check_directory, is_model_file)


class Source(ABC):
    """A model at its origin.

    Attributes:
        uri: the address that was requested.
        kind: what kind of model it has to be.
        name: readable part of the name of its entry in a cache or store.
        key: identifier of the content (commit, listing of a bucket, hash of a wheel).
        revision: identifier of the content at its origin; None takes the digest.
    """

    def __init__(self, uri: str, kind: Kind, *, name: str, key: str, revision: str | None) -> None:
        self.uri, self.kind, self.revision = uri, kind, revision
        self.name, self.key = name, key

    @property
    def entry(self) -> str:
        """Name of the model's entry in a cache or store: equal for equal content."""
        return entry_name(self.name, self.key)

    @abstractmethod
    def fill(self, directory: Path, log: Log) -> None:
        """Put all files into an empty directory.

        Raises:
            UserError: if they are no complete model.
            RetryableError: if network, server or disk failed.
        """


class ListedSource(Source):
    """A source whose files are known by name and can be fetched one by one."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Return the size of each file in bytes, 0 where the origin does not state it."""

    @abstractmethod
    def fetch(self, name: str, folder: Path) -> None:
        """Put one file into a folder."""

    def fill(self, directory: Path, log: Log) -> None:
        """Put all files into an empty directory; see `Source.fill`."""
        sizes = self.sizes()
        total = sum(sizes.values())
        require_space(directory, total)
        log(f"fetching {len(sizes)} files ({total / 1e6:.0f} MB) of {self.uri}")
        at_once(lambda name: self.fetch(name, directory), sizes)
        self.kind.check(directory)

    def fetch_small(self, folder: Path) -> dict[str, int]:
        """Put every file but the weights into a folder; return the sizes of all files."""
        sizes = self.sizes()
        at_once(lambda name: self.fetch(name, folder), (n for n in sizes if not is_weights(n)))
        return sizes


def at_once(transfer: Callable[[str], object], names: Iterable[str]) -> None:
    """Transfer files by name, a few at the same time; the first error is raised."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        # Cancels what has not begun when one fails.
        for _ in pool.map(transfer, names):
            pass
