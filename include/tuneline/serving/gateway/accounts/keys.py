"""API keys: made here, shown once, stored only as SHA-256, beside what they may do.

A key is 32 random bytes, so one round of SHA-256 is enough: there is no weak password to guess,
which is what a slow hash (scrypt) protects.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NotRequired, TypeAlias, TypedDict

from tuneline.errors import TunelineError, UserError

log = logging.getLogger("tuneline.gateway")

Period: TypeAlias = Literal["day", "month"]
Unit: TypeAlias = Literal["tokens", "cost"]
_PREFIX = "tl-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# How long a running gateway may go on without looking whether the file changed.
_RELOAD_AFTER_S = 1.0


@dataclass(frozen=True)
class Budget:
    """An amount that a key may spend in a period.

    Attributes:
        name: its name in the keys file.
        amount: tokens of prompts and answers, or money in the gateway's currency.
    """

    name: str
    unit: Unit
    period: Period
    amount: float


@dataclass(frozen=True)
class KeyLimits:
    """The limits of a key; None sets no limit. Periods are days and months in UTC.

    Attributes:
        requests_at_once: requests under way; None takes a share of the gateway's.
    """

    requests_at_once: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    cost_per_day: float | None = None
    cost_per_month: float | None = None

    @cached_property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets that are set."""
        return tuple(
            Budget(name, unit, period, amount)
            for name, unit, period in _BUDGETS
            if (amount := getattr(self, name)) is not None
        )

    @cached_property
    def rated(self) -> bool:
        """True if requests or tokens per minute are limited."""
        return self.requests_per_minute is not None or self.tokens_per_minute is not None

    def __bool__(self) -> bool:
        """Return True if anything is limited."""
        return bool(self.stated())

    def stated(self) -> dict[str, float]:
        """Return the limits that are set, by name."""
        return {name: value for name in LIMITS if (value := getattr(self, name)) is not None}


LIMITS = tuple(field.name for field in fields(KeyLimits))

NO_LIMITS = KeyLimits()

_BUDGETS: tuple[tuple[str, Unit, Period], ...] = (
    ("tokens_per_day", "tokens", "day"),
    ("tokens_per_month", "tokens", "month"),
    ("cost_per_day", "cost", "day"),
    ("cost_per_month", "cost", "month"),
)


def parse_limits(stated: Any, where: str) -> KeyLimits:
    """Read limits as the keys file states them.

    Args:
        stated: a mapping of limits by name, or None.
        where: the place, for messages.

    Raises:
        UserError: if a name is unknown, or an amount is not a positive number.
    """
    if stated is None:
        return NO_LIMITS
    if not isinstance(stated, Mapping):
        raise UserError(f'{where} must be an object such as {{"tokens_per_day": 100000}}')
    if unknown := sorted(set(map(str, stated)) - set(LIMITS)):
        raise UserError(f"{where}.{unknown[0]} is unknown; limits are {', '.join(LIMITS)}")
    return KeyLimits(**{name: _amount(name, value, where) for name, value in stated.items()})


def _amount(name: str, value: Any, where: str) -> Any:
    money = name.startswith("cost")
    kinds = (int, float) if money else (int,)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
        number = "a number" if money else "a whole number"
        raise UserError(f"{where}.{name} must be {number} above 0; `keys revoke` ends a key")
    return float(value) if money else value


class KeyRecord(TypedDict):
    """A key as the keys file stores it.

    Requests of one with `"log": false` are not logged; one with `models` may ask for these alone;
    one with `revoked_at` opens nothing. `limits` are those of `KeyLimits`.
    """

    name: str
    sha256: str
    created_at: str
    log: NotRequired[bool]
    models: NotRequired[list[str]]
    limits: NotRequired[dict[str, float]]
    revoked_at: NotRequired[str]


def new_key(
    name: str,
    *,
    logged: bool = True,
    models: Sequence[str] = (),
    limits: KeyLimits = NO_LIMITS,
) -> tuple[str, KeyRecord]:
    """Make a key.

    Args:
        name: its name in the ledger and the log.
        logged: False to keep its requests out of the production log.
        models: ids of the models that it may ask for; all if there are none.
        limits: its rates and budgets.

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
    record: KeyRecord = {"name": name, "sha256": _digest(plain), "created_at": _now()}
    if not logged:
        record["log"] = False
    if models:
        record["models"] = list(models)
    if limits:
        record["limits"] = limits.stated()
    return plain, record


def add_key(
    path: Path,
    name: str,
    *,
    logged: bool = True,
    models: Sequence[str] = (),
    limits: KeyLimits = NO_LIMITS,
) -> str:
    """Make a key and add its record to a keys file (made with mode 0600 if it is missing).

    Args are those of `new_key`.

    Returns:
        The key itself; it cannot be shown again.

    Raises:
        UserError: if the name is taken or unfit, or the file is not a keys file.
        TunelineError: if the file cannot be written.
    """
    plain, record = new_key(name, logged=logged, models=models, limits=limits)
    with _changing(path) as records:
        if any(known["name"] == name for known in records):
            # Also a revoked one: its usage stands in the ledger under this name.
            raise UserError(f"{path}: a key named {name} exists; choose another name")
        records.append(record)
    return plain


def revoke_key(path: Path, name: str) -> None:
    """Revoke a key: gateways that follow the file refuse it within a second.

    The record stays, so that nobody else gets its name and, with it, its usage and budgets.

    Raises:
        UserError: if there is no such key, it is revoked already, or the file is no keys file.
        TunelineError: if the file cannot be written.
    """
    if not path.exists():
        raise UserError(f"{path}: no such keys file")
    with _changing(path) as records:
        record = next((known for known in records if known["name"] == name), None)
        if record is None:
            raise UserError(f"{path}: no key is named {name}; `tuneline keys list` names them")
        if revoked := record.get("revoked_at"):
            raise UserError(f"{path}: the key {name} was revoked at {revoked}")
        record["revoked_at"] = _now()


@contextmanager
def _changing(path: Path) -> Iterator[list[KeyRecord]]:
    """Give the records of a keys file to a change and write them back."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two processes that change the file at once must not lose a change.
        with path.with_name(path.name + ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            records = read_keys(path) if path.exists() else []
            yield records
            _write_whole(path, json.dumps({"keys": records}, indent=1) + "\n")
    except OSError as error:
        raise TunelineError(f"{path}: the key cannot be stored: {error.strerror}") from None


def read_keys(path: Path) -> list[KeyRecord]:
    """Read a keys file.

    Raises:
        UserError: if it cannot be read, or an entry is wrong.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such keys file; make one with the first key by "
            f"`tuneline keys create NAME --keys {path}`"
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
        record = _record(entry, f"{path}: keys[{number}]")
        if any(known["name"] == record["name"] for known in records):
            raise UserError(
                f"{path}: keys[{number}] has the same name as an earlier key: {record['name']}"
            )
        records.append(record)
    return records


def _record(entry: Any, where: str) -> KeyRecord:
    """Return an entry of the file, as it is, so that a change of another key keeps it."""
    fields = entry if isinstance(entry, dict) else {}
    name, digest = fields.get("name"), fields.get("sha256")
    # The message never quotes the entry: someone may have put a plain key there.
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(f"{where}.name is missing or not a plain name")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise UserError(f"{where}.sha256 must be 64 lower-case hex digits")
    logged, models = fields.get("log", True), fields.get("models")
    if not isinstance(logged, bool):
        raise UserError(f"{where}.log must be true or false")
    if models is not None and not _is_list_of_names(models):
        raise UserError(f"{where}.models must be a list of at least one model id")
    revoked = fields.get("revoked_at")
    if revoked is not None and not isinstance(revoked, str):
        raise UserError(f"{where}.revoked_at must be the time at which the key was revoked")
    created = str(fields.get("created_at") or "")
    record: KeyRecord = {"name": name, "sha256": digest, "created_at": created}
    if not logged:
        record["log"] = False
    if models:
        record["models"] = models
    if limits := parse_limits(fields.get("limits"), f"{where}.limits").stated():
        record["limits"] = limits
    if revoked is not None:
        record["revoked_at"] = revoked
    return record


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)


@dataclass(frozen=True)
class Grant:
    """What a key may do.

    Attributes:
        name: its name in the ledger and the log.
        models: the models that it may ask for, None for all.
        limits: its rates and budgets.
        logged: True if its requests may be logged.
    """

    name: str
    models: frozenset[str] | None
    limits: KeyLimits
    logged: bool

    def allows(self, model: str) -> bool:
        """Return True if the key may ask for a model, by its id without a version."""
        return self.models is None or model in self.models


class KeyRing:
    """The keys of a running gateway; it follows changes of the file within a second.

    Args:
        path: the file.
        clock: monotonic clock, in seconds.

    Raises:
        UserError: see `read_keys`.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._take(read_keys(path))
        self._stamp = _stamp(path)
        self._looked = clock()

    def __len__(self) -> int:
        """Return the number of keys in force."""
        return len(self._grants)

    def name_of(self, plain: str) -> str | None:
        """Return the name of a presented key, None if it is unknown or revoked.

        The hash is looked up, not compared with each one: the time that this takes depends on
        bits of a SHA-256 that nobody can choose, and tells nothing about a key.
        """
        self._follow_file()
        return self._names.get(hashlib.sha256(plain.encode("utf-8", "surrogateescape")).digest())

    def grant_of(self, name: str) -> Grant | None:
        """Return what a key may do, None if it is unknown or revoked by now."""
        return self._grants.get(name)

    def grants(self) -> list[Grant]:
        """Return the grants of all keys that are in force."""
        return list(self._grants.values())

    def is_logged(self, name: str) -> bool:
        """Return True if the requests of a key may be logged; those of a removed one may not."""
        grant = self._grants.get(name)
        return grant is not None and grant.logged

    def _take(self, records: list[KeyRecord]) -> None:
        valid = [record for record in records if "revoked_at" not in record]
        self._names = {bytes.fromhex(record["sha256"]): record["name"] for record in valid}
        self._grants = {record["name"]: _grant(record) for record in valid}

    def _follow_file(self) -> None:
        now = self._clock()
        if now - self._looked < _RELOAD_AFTER_S:
            return
        self._looked = now
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._take(read_keys(self._path))
            log.info("keys file read again: %d keys", len(self._names))
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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _grant(record: KeyRecord) -> Grant:
    models = record.get("models")
    return Grant(
        name=record["name"],
        models=frozenset(models) if models else None,
        limits=parse_limits(record.get("limits"), "limits"),
        logged=record.get("log", True),
    )


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
