"""API keys: made here, shown once, stored only as SHA-256.

A key is 32 random bytes, so one round of SHA-256 is enough: there is no weak password to guess,
which is what a slow hash (scrypt) protects.
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
from datetime import UTC, datetime
from pathlib import Path
from typing import NotRequired, TypedDict

from tuneline.errors import TunelineError, UserError

log = logging.getLogger("tuneline.gateway")

_PREFIX = "tl-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# How long a running gateway may go on without looking whether the file changed.
_RELOAD_AFTER_S = 1.0


class KeyRecord(TypedDict):
    """A key as the keys file stores it; requests of one with `"log": false` are not logged."""

    name: str
    sha256: str
    created_at: str
    log: NotRequired[bool]


def new_key(name: str, *, logged: bool = True) -> tuple[str, KeyRecord]:
    """Make a key.

    Args:
        name: its name in the ledger and the log.
        logged: False to keep its requests out of the request log and the production log.

    Returns:
        The key itself, to be shown once, and the record to store.

    Raises:
        UserError: if the name has characters that are not safe in a log.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot name an API key: use 1 to 64 letters, digits, dots, dashes, "
            "underscores or @, starting with a letter or digit"
        )
    plain = _PREFIX + secrets.token_urlsafe(32)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    record: KeyRecord = {"name": name, "sha256": _digest(plain), "created_at": created}
    return plain, record if logged else {**record, "log": False}


def add_key(path: Path, name: str, *, logged: bool = True) -> str:
    """Make a key and add its record to a keys file (made with mode 0600 if it is missing).

    Returns:
        The key itself; it cannot be shown again.

    Raises:
        UserError: if the name is taken or unfit, or the file is not a keys file.
        TunelineError: if the file cannot be written.
    """
    plain, record = new_key(name, logged=logged)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two processes that add a key at once must not lose one of them.
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
        UserError: if it cannot be read, or an entry lacks its name or its hash.
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
        logged = fields.get("log", True)
        if not isinstance(logged, bool):
            raise UserError(f"{path}: keys[{number}].log must be true or false")
        created = str(fields.get("created_at") or "")
        record: KeyRecord = {"name": name, "sha256": digest, "created_at": created}
        # The entry stays as it is when another key is added.
        records.append(record if logged else {**record, "log": False})
    return records


class KeyRing:
    """The keys of a running gateway; it follows changes of the file within a second.

    Raises:
        UserError: see `read_keys`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._take(read_keys(path))
        self._stamp = _stamp(path)
        self._looked = time.monotonic()

    def name_of(self, plain: str) -> str | None:
        """Return the name of a presented key, None if it is unknown.

        Every stored hash is compared, each in constant time, so that the time taken does not
        show which one came close.
        """
        self._follow_file()
        presented = hashlib.sha256(plain.encode("utf-8", "surrogateescape")).digest()
        found: str | None = None
        for name, digest in self._keys:
            if hmac.compare_digest(digest, presented):
                found = name
        return found

    def is_logged(self, name: str) -> bool:
        """Return True if the requests of a key may be logged."""
        return name not in self._unlogged

    def _take(self, records: list[KeyRecord]) -> None:
        self._keys = _digests(records)
        self._unlogged = frozenset(r["name"] for r in records if not r.get("log", True))

    def _follow_file(self) -> None:
        now = time.monotonic()
        if now - self._looked < _RELOAD_AFTER_S:
            return
        self._looked = now
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._take(read_keys(self._path))
            log.info("keys file read again: %d keys", len(self._keys))
        except UserError as error:
            log.error("the keys stay as they were: %s", error)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Identify a version of a file: one that was replaced or changed has another stamp."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _digest(plain: str) -> str:
    return hashlib.sha256(plain.encode("utf-8")).hexdigest()


def _digests(records: list[KeyRecord]) -> tuple[tuple[str, bytes], ...]:
    return tuple((record["name"], bytes.fromhex(record["sha256"])) for record in records)


def _write_whole(path: Path, text: str) -> None:
    """Replace a file in one step, so that a reader sees the old one or the new one."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    fresh.replace(path)
