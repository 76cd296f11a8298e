"""API keys: made here, shown once, kept only as SHA-256.

A key is 32 random bytes, so one round of SHA-256 is enough: there is no weak
password to guess and nothing for a slow hash (scrypt) to slow down.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

from tuneline.errors import TunelineError, UserError

log = logging.getLogger("tuneline.gateway")

_PREFIX = "tl-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# How long a running gateway may go on without looking whether the file changed.
_RELOAD_AFTER_S = 1.0


class KeyRecord(TypedDict):
    """What is stored of a key."""

    name: str
    sha256: str
    created_at: str


def new_key(name: str) -> tuple[str, KeyRecord]:
    """Make a key.

    Args:
        name: who it is for; the ledger's and the log's word for it.

    Returns:
        The key itself, to be shown once, and the record to store.

    Raises:
        UserError: the name has characters that would not be safe in a log.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot name an API key: use 1 to 64 letters, digits, dots, dashes, "
            "underscores or @, starting with a letter or digit"
        )
    plain = _PREFIX + secrets.token_urlsafe(32)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return plain, {"name": name, "sha256": _digest(plain), "created_at": created}


def add_key(path: Path, name: str) -> str:
    """Make a key and add its record to a keys file (made with mode 0600 when missing).

    Returns:
        The key itself; it cannot be shown again.

    Raises:
        UserError: the name is taken or unfit, or the file is no keys file.
        TunelineError: the file cannot be written.
    """
    plain, record = new_key(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two people adding at once must not lose one of the keys.
        with path.with_name(path.name + ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            records = read_keys(path) if path.exists() else []
            if any(known["name"] == name for known in records):
                raise UserError(f"{path}: a key named {name} exists; choose another name")
            _write_whole(path, json.dumps({"keys": [*records, record]}, indent=1) + "\n")
    except OSError as error:
        raise TunelineError(f"{path}: the key cannot be stored: {error.strerror}") from None
    return plain


def read_keys(path: Path) -> list[KeyRecord]:
    """Read a keys file.

    Raises:
        UserError: it cannot be read, or an entry has not exactly a name and a hash.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such keys file; make one with the first key by "
            f"`tuneline gateway-key NAME --keys {path}`"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: the keys file cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path}: the keys file is not JSON") from None
    entries = data.get("keys") if isinstance(data, dict) else None
    if not isinstance(entries, list):
        raise UserError(f'{path}: the keys file must be {{"keys": [{{"name", "sha256"}}, …]}}')
    records: list[KeyRecord] = []
    for number, entry in enumerate(entries):
        fields = entry if isinstance(entry, dict) else {}
        name, digest = fields.get("name"), fields.get("sha256")
        # The message never quotes the entry: someone may have put a plain key there.
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UserError(f"{path}: keys[{number}].name is missing or not a plain name")
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise UserError(f"{path}: keys[{number}].sha256 must be 64 lower-case hex digits")
        if any(known["name"] == name for known in records):
            raise UserError(f"{path}: keys[{number}] has the same name as an earlier key: {name}")
        created = fields.get("created_at")
        records.append({"name": name, "sha256": digest, "created_at": str(created or "")})
    return records


@dataclass(frozen=True)
class _Stamp:
    """Which file was read: a replaced or changed file has another stamp."""

    inode: int
    mtime_ns: int
    size: int

    @classmethod
    def of(cls, path: Path) -> _Stamp:
        stat = path.stat()
        return cls(stat.st_ino, stat.st_mtime_ns, stat.st_size)


class KeyRing:
    """The keys of a running gateway; follows changes of the file within a second."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            UserError: see `read_keys`.
        """
        self._path = path
        self._keys = _digests(read_keys(path))
        self._stamp: _Stamp | None = _Stamp.of(path)
        self._looked = time.monotonic()

    def name_of(self, plain: str) -> str | None:
        """The name that a presented key belongs to, or None.

        Every stored hash is compared, each in constant time, so the time taken
        tells nothing about which came close.
        """
        self._follow_file()
        presented = hashlib.sha256(plain.encode("utf-8", "surrogateescape")).digest()
        found: str | None = None
        for name, digest in self._keys:
            if hmac.compare_digest(digest, presented):
                found = name
        return found

    def _follow_file(self) -> None:
        now = time.monotonic()
        if now - self._looked < _RELOAD_AFTER_S:
            return
        self._looked = now
        try:
            stamp: _Stamp | None = _Stamp.of(self._path)
        except OSError:
            stamp = None
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = _digests(read_keys(self._path))
            log.info("keys file read again: %d keys", len(self._keys))
        except UserError as error:
            log.error("the keys stay as they were: %s", error)


def _digest(plain: str) -> str:
    return hashlib.sha256(plain.encode("utf-8")).hexdigest()


def _digests(records: list[KeyRecord]) -> tuple[tuple[str, bytes], ...]:
    return tuple((record["name"], bytes.fromhex(record["sha256"])) for record in records)


def _write_whole(path: Path, text: str) -> None:
    """Replace a file in one step; a reader sees the old one or the new one."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    fresh.replace(path)
