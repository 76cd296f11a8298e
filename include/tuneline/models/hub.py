"""Base models on the Hugging Face hub (or a mirror of it, `HF_ENDPOINT`)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from tuneline.errors import RetryableError, UserError, first_line
from tuneline.models.cache import Log
from tuneline.models.source import BASE, Kind, ListedSource
from tuneline.store import sha256_file

T = TypeVar("T")

_REPOSITORY = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubSource(ListedSource):
    """`hf://org/name@revision`.

    A full commit is fixed content and needs no network once it is cached or stored. A branch or
    tag is looked up each time; its commit is recorded.
    """

    def __init__(self, uri: str, rest: str, log: Log, kind: Kind = BASE) -> None:
        """Look the commit up.

        Raises:
            UserError: if the address is malformed, or the model unknown or gated.
            RetryableError: if the hub can't be reached.
        """
        self._subject = f"{kind.title} {uri!r}"
        self._repository, self._revision = repository_of(uri, rest, kind)
        pinned = _COMMIT.fullmatch(self._revision)
        if not pinned:
            log(f"{uri}: {self._revision} is not a commit and may move; use the recorded one")
        commit = self._revision if pinned else str(self._info.sha)
        super().__init__(
            uri,
            kind,
            name="hf-" + self._repository.replace("/", "--"),
            key=f"{self._repository} {commit}",
            revision=commit,
        )

    @cached_property
    def _info(self) -> Any:
        from huggingface_hub import HfApi

        return call_hub(
            self._subject,
            lambda: HfApi().model_info(
                self._repository, revision=self._revision, files_metadata=True
            ),
        )

    @cached_property
    def _hashes(self) -> dict[str, str]:
        large = (entry for entry in self._info.siblings or [] if entry.lfs)
        return {entry.rfilename: entry.lfs.sha256 for entry in large}

    def sizes(self) -> dict[str, int]:
        """See `ListedSource.sizes`."""
        found = {entry.rfilename: entry.size or 0 for entry in self._info.siblings or []}
        return {name: size for name, size in sorted(found.items()) if self.kind.wanted(name)}

    def fetch(self, name: str, folder: Path) -> None:
        """See `ListedSource.fetch`; the client goes on with a transfer that was interrupted.

        Raises:
            RetryableError: if the hub failed, or its file has another hash than it states.
        """
        from huggingface_hub import hf_hub_download

        call_hub(
            self._subject,
            lambda: hf_hub_download(
                self._repository, name, revision=self.revision, local_dir=folder
            ),
        )
        # The hub states the hash of large files, the client compares their size alone.
        stated = self._hashes.get(name)
        if stated and sha256_file(folder / name) != stated:
            (folder / name).unlink()
            raise RetryableError(f"{self._subject}: {name} has other bytes than the hub states")

    def fill(self, directory: Path, log: Log) -> None:
        """See `Source.fill`."""
        super().fill(directory, log)
        # Notes of the client.
        shutil.rmtree(directory / ".cache", ignore_errors=True)


def repository_of(uri: str, rest: str, kind: Kind = BASE) -> tuple[str, str]:
    """Return the repository and the revision of an address.

    Raises:
        UserError: if either is missing.
    """
    repository, _, revision = rest.strip("/").partition("@")
    if not _REPOSITORY.fullmatch(repository) or not revision:
        raise UserError(
            f"{kind.title} {uri!r}: write hf://org/name@revision, the revision best a full commit"
        )
    return repository, revision


def call_hub(subject: str, action: Callable[[], T]) -> T:
    """Run a call of the hub's client and translate its errors.

    Args:
        subject: the requested object, with which messages begin.
        action: the call.

    Raises:
        UserError: if the object is unknown, or the hub refuses it.
        RetryableError: if the hub can't be reached or failed.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # Errors of its HTTP library are passed on: httpx's or httpx2's, depending on its version.
    transport: tuple[Any, ...] = HfHubHTTPError.__bases__
    unavailable = (EntryNotFoundError, OfflineModeIsEnabled, *transport)
    try:
        return action()
    except GatedRepoError:
        raise UserError(
            f"{subject} is gated; accept its terms on the hub and set HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{subject}: the hub knows no such revision") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{subject}: the hub knows no such repository, or HF_TOKEN may not read it"
        ) from None
    except HFValidationError as error:
        raise UserError(f"{subject}: {first_line(error)}") from None
    except unavailable as error:
        reason = first_line(error)
        raise RetryableError(
            f"{subject}: the hub can't be reached or failed ({reason}); "
            "offline, give a directory or s3:// instead"
        ) from error
