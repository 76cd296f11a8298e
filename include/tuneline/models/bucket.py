"""Base models in an S3 bucket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuneline.errors import RetryableError, UserError
from tuneline.models.cache import Log
from tuneline.models.source import BASE, Kind, ListedSource
from tuneline.store.bucket import call_s3


class BucketSource(ListedSource):
    """`s3://bucket/prefix`; endpoint and credentials as boto3 finds them.

    The listing (names, sizes, ETags) is the key: a changed object makes another entry, an
    unchanged prefix costs one request.
    """

    def __init__(self, uri: str, rest: str, _log: Log, kind: Kind = BASE) -> None:
        """List the prefix.

        Raises:
            UserError: if the bucket does not exist, access is denied, or the prefix holds no
                file of a model.
            RetryableError: if the server can't be reached or fails.
        """
        import boto3

        self._bucket, _, prefix = rest.partition("/")
        if not self._bucket or not prefix.strip("/"):
            raise UserError(f"{kind.title} {uri!r}: write s3://bucket/prefix")
        self._prefix = prefix.strip("/") + "/"
        # A new session: the default one keeps the first credentials that it saw.
        self._client = boto3.session.Session().client("s3")
        self._objects: dict[str, Any] = call_s3(
            f"{kind.title} {uri!r}", lambda: self._list(kind.wanted)
        )
        if not self._objects:
            raise UserError(f"{kind.title} {uri!r}: there is no model file under that prefix")
        key = "\n".join(
            " ".join((entry["Key"], str(entry["Size"]), entry["ETag"].strip('"')))
            for entry in self._objects.values()
        )
        super().__init__(uri, kind, name=f"s3-{self._bucket}", key=key, revision=None)

    def sizes(self) -> dict[str, int]:
        """See `ListedSource.sizes`."""
        return {name: int(entry["Size"]) for name, entry in self._objects.items()}

    def fetch(self, name: str, folder: Path) -> None:
        """See `ListedSource.fetch`."""
        entry, target = self._objects[name], folder / name
        target.parent.mkdir(exist_ok=True)
        call_s3(
            f"{self.kind.title} {self.uri!r}",
            lambda: self._client.download_file(self._bucket, entry["Key"], str(target)),
        )
        found = target.stat().st_size
        if found != entry["Size"]:
            raise RetryableError(
                f"s3://{self._bucket}/{entry['Key']}: got {found} of {entry['Size']} bytes"
            )

    def _list(self, wanted: Callable[[str], bool]) -> dict[str, Any]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix
        )
        found = {
            entry["Key"].removeprefix(self._prefix): entry
            for page in pages
            for entry in page.get("Contents", [])
        }
        return {name: found[name] for name in sorted(found) if wanted(name)}
