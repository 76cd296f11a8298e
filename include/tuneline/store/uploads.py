"""Writes to a bucket whose bytes the server checks by SHA-256 before the object appears."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def sealed(digest: str) -> dict[str, Any]:
    """Return what a write says of its bytes: the server refuses others, and keeps the hash.

    Args:
        digest: hex SHA-256 of the bytes.
    """
    return {"Metadata": {"sha256": digest}, "ChecksumSHA256": _base64(bytes.fromhex(digest))}


def put_parts(
    s3: Any,
    path: Path,
    part_bytes: int,
    where: Mapping[str, str],
    digest: str,
    *,
    condition: Mapping[str, str],
) -> None:
    """Upload a file in parts; the object appears with the last call, or not at all.

    Args:
        s3: the client.
        path: the file.
        part_bytes: size of a part.
        where: bucket and key.
        digest: hex SHA-256 of the whole file.
        condition: condition of the last call, such as that there is no such object.
    """
    upload = s3.create_multipart_upload(
        **where, Metadata={"sha256": digest}, ChecksumAlgorithm="SHA256"
    )["UploadId"]
    named = {**where, "UploadId": upload}
    try:
        parts = _send(s3, path, part_bytes, named)
        s3.complete_multipart_upload(**named, MultipartUpload={"Parts": parts}, **condition)
    except BaseException as error:
        # An error of its own would hide the first one.
        with suppress(Exception):
            s3.abort_multipart_upload(**named)
        if not _was_completed(s3, error, where, digest):
            raise


def _send(s3: Any, path: Path, part_bytes: int, named: Mapping[str, str]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    with path.open("rb") as handle:
        while block := handle.read(part_bytes):
            number = len(parts) + 1
            answer = s3.upload_part(
                **named,
                PartNumber=number,
                Body=block,
                ChecksumAlgorithm="SHA256",
                ChecksumSHA256=_base64(hashlib.sha256(block).digest()),
            )
            # A server that kept the checksum compares it again with what it is told at the end,
            # and refuses to be told nothing.
            kept = {name: value for name, value in answer.items() if name.startswith("Checksum")}
            kept.pop("ChecksumType", None)
            parts.append({"PartNumber": number, "ETag": answer["ETag"], **kept})
    return parts


def _was_completed(s3: Any, error: BaseException, where: Mapping[str, str], digest: str) -> bool:
    """Return True if the call that failed repeated one that had worked, whose answer was lost."""
    from botocore.exceptions import ClientError

    if not isinstance(error, ClientError) or error.response["Error"]["Code"] != "NoSuchUpload":
        return False
    try:
        head = s3.head_object(**where)
    except ClientError:
        return False
    return bool(head["Metadata"].get("sha256") == digest)


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
