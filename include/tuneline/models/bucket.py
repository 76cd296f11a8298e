"""Base models in an S3 bucket."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tuneline.errors import RetryableError, UserError
from tuneline.models.base_model import MODEL_PATTERNS, BaseModel, check_directory, describe
from tuneline.models.cache import Log, cached_model
from tuneline.store.bucket import call_s3


@dataclass(frozen=True)
class _Object:
    key: str
    name: str
    size: int
    etag: str


def resolve_bucket(uri: str, rest: str, root: Path, log: Log) -> BaseModel:
    """Resolve `s3://bucket/prefix`; endpoint and credentials as boto3 finds them.

    The listing (names, sizes, ETags) is the cache key: a changed object is fetched again, an
    unchanged prefix costs one request.

    Raises:
        UserError: if the bucket does not exist, access is denied, or the prefix holds no
            complete model.
        RetryableError: if the server can't be reached or fails.
    """
    import boto3

    bucket, _, prefix = rest.partition("/")
    if not bucket or not prefix.strip("/"):
        raise UserError(f"base model {uri!r}: write s3://bucket/prefix")
    prefix = prefix.strip("/") + "/"
    # A new session: the default one keeps the first credentials that it saw.
    client = boto3.session.Session().client("s3")
    objects = call_s3(f"base model {uri!r}", lambda: _list(client, bucket, prefix))
    if not objects:
        raise UserError(f"base model {uri!r}: there is no model file under that prefix")
    key = "\n".join(f"{entry.key} {entry.size} {entry.etag}" for entry in objects)

    def fill(directory: Path) -> None:
        total = sum(entry.size for entry in objects)
        log(f"fetching {len(objects)} files ({total / 1e6:.0f} MB) from {uri}")
        for entry in objects:
            target = directory / entry.name
            call_s3(
                f"base model {uri!r}",
                partial(client.download_file, bucket, entry.key, str(target)),
            )
            found = target.stat().st_size
            if found != entry.size:
                raise RetryableError(
                    f"s3://{bucket}/{entry.key}: got {found} of {entry.size} bytes"
                )
        check_directory(directory)

    directory, files = cached_model(root, f"s3-{bucket}", key, fill, log=log)
    return describe(uri, directory, files)


def _list(client: Any, bucket: str, prefix: str) -> list[_Object]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    found = []
    for page in pages:
        for entry in page.get("Contents", []):
            name = entry["Key"].removeprefix(prefix)
            # Sub-folders usually hold other formats of the same model.
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in MODEL_PATTERNS) and (
                "/" not in name
            ):
                found.append(
                    _Object(entry["Key"], name, int(entry["Size"]), entry["ETag"].strip('"'))
                )
    return sorted(found, key=lambda entry: entry.name)
