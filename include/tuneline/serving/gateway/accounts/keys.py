"""API keys: made here, shown once, stored only as SHA-256, with what they may do.

A key is 32 random bytes, so one round of SHA-256 is enough: there is no weak password to guess,
which is what a slow hash (scrypt) protects.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tuneline.errors import TunelineError, UserError
from tuneline.files import write_whole

log = logging.getLogger("tuneline.gateway")

Period: TypeAlias = Literal["day", "month"]
Unit: TypeAlias = Literal["tokens", "cost"]

_PREFIX = "tl-"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"
# How long a running gateway may go on without looking whether the file changed.
_RELOAD_AFTER_S = 1.0
_BUDGETS: tuple[tuple[str, Unit, Period], ...] = (
    ("tokens_per_day", "tokens", "day"),
    ("tokens_per_month", "tokens", "month"),
    ("cost_per_day", "cost", "day"),
    ("cost_per_month", "cost", "month"),
)


@dataclass(frozen=True)
class Budget:
    """An amount that a key may spend in a period."""

    name: str
    unit: Unit
    period: Period
    amount: float


def _limit(kind: str = "a whole number") -> Any:
    says = f"must be {kind} above 0; `keys revoke` ends a key"
    return Field(None, gt=0, allow_inf_nan=None if "whole" in kind else False, description=says)


class KeyLimits(BaseModel):
    """The limits of a key; None sets no limit, but for `requests_at_once` a share of the gateway's.

    Periods are days and months in UTC.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    requests_at_once: int | None = _limit()
    requests_per_minute: int | None = _limit()
    tokens_per_minute: int | None = _limit()
    tokens_per_day: int | None = _limit()
    tokens_per_month: int | None = _limit()
    cost_per_day: float | None = _limit("a number")
    cost_per_month: float | None = _limit("a number")

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
        return self != NO_LIMITS


NO_LIMITS = KeyLimits()


class KeyRecord(BaseModel):
    """A key as the keys file stores it, and what it may do."""

    model_config = ConfigDict(strict=True)

    name: str = Field(pattern=_NAME, description="is missing or not a plain name")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="must be 64 lower-case hex digits")
    created_at: str | None = Field(None, description="must be a time")
    log: bool = Field(True, description="must be true or false")
    models: tuple[str, ...] | None = Field(
        None, min_length=1, description="must be a list of at least one model id"
    )
    limits: KeyLimits = NO_LIMITS
    revoked_at: str | None = Field(
        None, description="must be the time at which the key was revoked"
    )

    @field_validator("created_at", mode="before")
    @classmethod
    def _as_text(cls, given: Any) -> str | None:
        return str(given) if given else None

    @field_validator("limits", mode="before")
    @classmethod
    def _no_limits(cls, given: Any) -> Any:
        return NO_LIMITS if given is None else given

    def allows(self, model: str) -> bool:
        """Return True if the key may ask for a model, by its id without a version."""
        return self.models is None or model in self.models

    def stated(self, **leaving_out: Any) -> dict[str, Any]:
        """Return what the file states of it."""
        return self.model_dump(exclude_defaults=True, exclude_none=True, mode="json", **leaving_out)


class _KeysFile(BaseModel):
    keys: list[KeyRecord]


def parse_limits(stated: dict[str, Any], where: str) -> KeyLimits:
    """Read limits by name; an unknown name or an amount that is not positive is a `UserError`."""
    try:
        return KeyLimits.model_validate(stated)
    except ValidationError as error:
        raise _wrong(KeyLimits, _problem(error)["loc"], where) from None


def _problem(error: ValidationError) -> Any:
    """Return the first problem, without the value: someone may have put a plain key there."""
    return error.errors(include_url=False, include_context=False, include_input=False)[0]


def _wrong(model: type[BaseModel], path: Sequence[int | str], where: str) -> UserError:
    if path and path[0] == "limits":
        return _wrong(KeyLimits, path[1:], f"{where}.limits")
    if not path:
        return UserError(f'{where} must be an object such as {{"tokens_per_day": 100000}}')
    field = model.model_fields.get(str(path[0]))
    known = ", ".join(model.model_fields)
    says = f"is unknown; limits are {known}" if field is None else field.description
    return UserError(f"{where}.{path[0]} {says}")


def new_key(
    name: str, *, logged: bool = True, models: Sequence[str] = (), limits: KeyLimits = NO_LIMITS
) -> tuple[str, KeyRecord]:
    """Make a key; return it, to be shown once, and the record to store.

    Raises:
        UserError: if the name has characters that are not safe in a log.
    """
    if not re.fullmatch(_NAME, name):
        raise UserError(
            f"{name!r} cannot name an API key: use 1 to 64 letters, digits, dots, dashes, "
            "underscores or @, starting with a letter or digit"
        )
    plain = _PREFIX + secrets.token_urlsafe(32)
    return plain, KeyRecord(
        name=name,
        sha256=hashlib.sha256(plain.encode()).hexdigest(),
        created_at=_now(),
        log=logged,
        models=tuple(models) or None,
        limits=limits,
    )


def add_key(
    path: Path,
    name: str,
    *,
    logged: bool = True,
    models: Sequence[str] = (),
    limits: KeyLimits = NO_LIMITS,
) -> str:
    """Make a key and add its record to a keys file (made with mode 0600 if it is missing).

    Raises:
        UserError: if the name is taken or unfit, or the file is not a keys file.
        TunelineError: if the file cannot be written.
    """
    plain, record = new_key(name, logged=logged, models=models, limits=limits)
    with _changing(path) as records:
        if any(known.name == name for known in records):
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
        record = next((known for known in records if known.name == name), None)
        if record is None:
            raise UserError(f"{path}: no key is named {name}; `tuneline keys list` names them")
        if record.revoked_at:
            raise UserError(f"{path}: the key {name} was revoked at {record.revoked_at}")
        record.revoked_at = _now()


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
            stated = {"keys": [record.stated() for record in records]}
            write_whole(path, (json.dumps(stated, indent=1) + "\n").encode())
    except OSError as error:
        raise TunelineError(f"{path}: the key cannot be stored: {error.strerror}") from None


def read_keys(path: Path) -> list[KeyRecord]:
    """Read a keys file; one that can't be read or has a wrong entry is a `UserError`."""
    try:
        records = _KeysFile.model_validate_json(path.read_bytes()).keys
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such keys file; make one with the first key by "
            f"`tuneline keys create NAME --keys {path}`"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: the keys file cannot be read: {error.strerror}") from None
    except ValidationError as error:
        problem = _problem(error)
        if problem["type"] == "json_invalid":
            raise UserError(f"{path}: the keys file is not JSON") from None
        if len(problem["loc"]) < 2:
            raise UserError(
                f'{path}: the keys file must be {{"keys": [{{"name", "sha256"}}, …]}}'
            ) from None
        _, number, *place = problem["loc"]
        raise _wrong(KeyRecord, place or ["name"], f"{path}: keys[{number}]") from None
    names: set[str] = set()
    for number, record in enumerate(records):
        if record.name in names:
            raise UserError(
                f"{path}: keys[{number}] has the same name as an earlier key: {record.name}"
            )
        names.add(record.name)
    return records


class KeyRing:
    """The keys of a running gateway; it follows changes of the file within a second."""

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

    def grant_of(self, name: str) -> KeyRecord | None:
        """Return what a key may do, None if it is unknown or revoked by now."""
        return self._grants.get(name)

    def grants(self) -> list[KeyRecord]:
        """Return the grants of all keys that are in force."""
        return list(self._grants.values())

    def is_logged(self, name: str) -> bool:
        """Return True if the requests of a key may be logged; those of a removed one may not."""
        grant = self._grants.get(name)
        return grant is not None and grant.log

    def _take(self, records: list[KeyRecord]) -> None:
        valid = [record for record in records if record.revoked_at is None]
        self._names = {bytes.fromhex(record.sha256): record.name for record in valid}
        self._grants = {record.name: record for record in valid}

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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
