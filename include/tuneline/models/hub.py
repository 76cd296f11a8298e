"""Base models on the Hugging Face hub (or a mirror of it, `HF_ENDPOINT`)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tuneline.errors import RetryableError, UserError, first_line
from tuneline.models.base_model import MODEL_PATTERNS, BaseModel, check_directory, describe
from tuneline.models.cache import Log, cached_model

T = TypeVar("T")

_REPOSITORY = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def resolve_hub(uri: str, rest: str, root: Path, log: Log) -> BaseModel:
    """Resolve `hf://org/name@revision`.

    A full commit is fixed content and needs no network once cached. A branch or tag is
    looked up each time; its commit is recorded.

    Raises:
        UserError: if the address is malformed, or the model unknown, gated or incomplete.
        RetryableError: if the hub can't be reached.
    """
    from huggingface_hub import HfApi, snapshot_download

    repository, revision = repository_of(uri, rest)
    subject = f"base model {uri!r}"
    commit = revision
    if not _COMMIT.fullmatch(revision):
        log(f"{uri}: {revision} is not a commit and may move; use the recorded one to pin it")
        info = call_hub(subject, lambda: HfApi().model_info(repository, revision=revision))
        commit = str(info.sha)

    def fill(directory: Path) -> None:
        log(f"fetching {repository} at {commit[:12]} from the hub")
        patterns = list(MODEL_PATTERNS)
        call_hub(
            subject,
            lambda: snapshot_download(
                repository, revision=commit, local_dir=directory, allow_patterns=patterns
            ),
        )
        shutil.rmtree(directory / ".cache", ignore_errors=True)
        check_directory(directory)

    name = "hf-" + repository.replace("/", "--")
    key = f"{repository} {commit}"
    directory, files = cached_model(root, name, key, fill, log=log)
    return describe(uri, directory, files, revision=commit)


def repository_of(uri: str, rest: str) -> tuple[str, str]:
    """Return the repository and the revision of an address.

    Raises:
        UserError: if either is missing.
    """
    repository, _, revision = rest.strip("/").partition("@")
    if not _REPOSITORY.fullmatch(repository) or not revision:
        raise UserError(
            f"base model {uri!r}: write hf://org/name@revision, the revision best a full commit"
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
