"""Datasets in an S3 bucket: one object, all below a prefix, or those that a glob matches."""

from __future__ import annotations

from functools import partial

from tuneline.data.sources.source_file import SourceFile, choose, fixed_folder, has_wildcard
from tuneline.errors import UserError
from tuneline.store import NotThere, S3Store


def split_address(address: str) -> tuple[str, str]:
    """Split `s3://bucket/key` into bucket and key.

    Raises:
        UserError: if it names no bucket.
    """
    bucket, _, key = address.removeprefix("s3://").partition("/")
    if not bucket:
        raise UserError(f"{address} names no bucket; write s3://bucket/key")
    return bucket, key


def find_in_bucket(address: str) -> list[SourceFile]:
    """Find the objects that an address names.

    Raises:
        UserError: if there are none, or the server refuses access.
        RetryableError: if the server failed.
    """
    bucket, key = split_address(address)
    store = S3Store(bucket, "")
    if key and not key.endswith("/") and not has_wildcard(key) and _is_there(store, key):
        return [_file(store, address, key)]
    keys = choose(list(store.keys(fixed_folder(key).strip("/"))), key)
    if not keys:
        raise UserError(
            f"{address} does not exist: there is no JSONL, CSV or Parquet file there; check "
            "bucket and key"
        )
    return [_file(store, address, name) for name in keys]


def _is_there(store: S3Store, key: str) -> bool:
    try:
        store.etag(key)
    except NotThere:
        return False
    return True


def _file(store: S3Store, address: str, key: str) -> SourceFile:
    uri = store.uri_of(key)
    return SourceFile(
        uri, address, uri, download=partial(store.get_foreign, key), tag=partial(store.etag, key)
    )
