"""`release.jsonl` of a model version: what happened to the version, one line for each event.

Each line carries the hash of the line before, the first one that of the manifest. One that moves
the release pointer also carries the hash of the line that moved it before, in whichever log.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tuneline.artifacts.artifact import fault
from tuneline.artifacts.governance import LogEnd
from tuneline.artifacts.releases import model_prefix
from tuneline.store import CorruptObject, NotThere, Store, Tagged

LOG_FILE = "release.jsonl"
SCHEMA: Literal["tuneline/release/1"] = "tuneline/release/1"


class _Event(BaseModel):
    # The hash covers the whole line, so a field of a newer version stays protected.
    model_config = ConfigDict(extra="ignore", frozen=True)


class Approved(_Event):
    """A person's answer to a question about the run, a refusal included."""

    event: Literal["approved"] = "approved"
    subject: str
    decision: str
    by: str
    answered_at: str
    reason: str = ""
    about: str | None = None  # SHA-256; of the manifest for the release


class Waived(_Event):
    """A measurement or a looser limit that somebody accepts."""

    event: Literal["waived"] = "waived"
    item: str
    limit: str | None = None  # what is looser than the policy allows
    measurement: str | None = None  # what may break its limit, and how far
    reason: str
    by: str
    approved_by: str | None = None


class Canary(_Event):
    """A share of the requests (0 to 1) went to the version beside the released one."""

    event: Literal["canary"] = "canary"
    share: float = Field(gt=0, le=1)
    outcome: Literal["started", "promoted", "withdrawn"]
    summary: str
    by: str | None = None


class Withdrawn(_Event):
    """The version is no longer to be served."""

    event: Literal["withdrawn"] = "withdrawn"
    by: str | None = None
    reason: str
    pruned: bool = False  # True if what it served was deleted


class Erased(_Event):
    """Rows about a person were deleted from tables that the version was made from."""

    event: Literal["erased"] = "erased"
    by: str
    subject_sha256: str
    rows: int
    files: dict[str, tuple[str, str]]  # by key: hash before, hash after
    sources: list[str] = []  # files outside of the store from which the rows came


class Pushed(_Event):
    """The version was pushed to another repository."""

    event: Literal["pushed"] = "pushed"
    by: str
    to: str  # hf://… or oci://…
    digest: str  # of the commit, or of the manifest in the registry


class _Move(_Event):
    """An event that moves the release pointer to the version."""

    previous_version: str | None  # None for the first release
    follows: str | None  # hash of the line that moved the pointer there


class Released(_Move):
    """The version was promoted."""

    event: Literal["released"] = "released"
    by: Any = None  # who started the run, None if a schedule did
    run: str
    approved_by: str | None = None
    lineage_sha256: str | None = None  # None in a line that an earlier version wrote


class RolledBack(_Move):
    """The pointer was moved back to the version."""

    event: Literal["rolled_back"] = "rolled_back"
    by: str | None = None
    reason: str


Event = Approved | Waived | Canary | Released | RolledBack | Withdrawn | Erased | Pushed
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


class _Chained(BaseModel):
    """Fields of every line beside those of its event."""

    schema_: Literal["tuneline/release/1"] = Field(alias="schema")
    at: str
    previous_sha256: str
    version: str


@dataclass(frozen=True)
class Line:
    """One line of a release log."""

    text: str  # without its end
    at: str
    previous_sha256: str  # of the line before, or of the manifest
    version: str
    event: Event

    @property
    def sha256(self) -> str:
        """Hash of the line, which the next one carries."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def moves(self) -> bool:
        """True if the event moves the release pointer to the version."""
        return isinstance(self.event, _Move)


def read_line(text: str) -> Line:
    """Read a line of a release log.

    Raises:
        ValueError: if it is not one; the message is one sentence.
    """
    try:
        document = json.loads(text)
        chained = _Chained.model_validate(document)
        event = _EVENT.validate_python(document)
    except ValidationError as error:
        raise ValueError(fault(error)) from None
    except ValueError:
        raise ValueError("it is not JSON") from None
    return Line(text, chained.at, chained.previous_sha256, chained.version, event)


def chain(version: str, events: Sequence[Event], previous_sha256: str, at: str) -> list[Line]:
    """Make the lines of events."""
    lines: list[Line] = []
    for event in events:
        before = lines[-1].sha256 if lines else previous_sha256
        head = {"schema": SCHEMA, "at": at, "previous_sha256": before, "event": event.event}
        fields = {**head, "version": version, **event.model_dump(mode="json")}
        text = json.dumps(fields, ensure_ascii=False)
        lines.append(Line(text, at, before, version, event))
    return lines


@dataclass(frozen=True)
class Log:
    """The release log of a version as it lies in the store."""

    uri: str
    stored: Tagged | None  # None without a log
    texts: list[str]

    @property
    def last_sha256(self) -> str | None:
        """Hash of its last line, None in an empty log."""
        return hashlib.sha256(self.texts[-1].encode()).hexdigest() if self.texts else None

    def ends_at(self, end: LogEnd | None) -> bool:
        """Return True if it ends where a pointer says; None stands for an empty log."""
        if end is None:
            return not self.texts
        return (len(self.texts), self.last_sha256) == (end.lines, end.sha256)

    def lines(self) -> list[Line]:
        """Return its lines."""
        found = []
        for number, text in enumerate(self.texts, 1):
            try:
                found.append(read_line(text))
            except ValueError as error:
                raise CorruptObject(f"{self.uri}, line {number} is not an event: {error}") from None
        return found


def withdrawal(lines: Iterable[Line]) -> str | None:
    """Return why the version of a log must not be served any more, None if it may."""
    for line in lines:
        match line.event:
            case Canary(outcome="withdrawn", summary=why) | Withdrawn(reason=why):
                return why
    return None


def log_key(name: str, version: str) -> str:
    """Return the key of a version's release log."""
    return f"{model_prefix(name, version)}/{LOG_FILE}"


def log_bytes(texts: Sequence[str]) -> bytes:
    """Return the bytes of a log with these lines."""
    return "".join(f"{text}\n" for text in texts).encode()


def read_log(store: Store, name: str, version: str) -> Log:
    """Read the release log of a version; it is empty if there is none.

    Raises:
        CorruptObject: if its bytes are not those that were written, or its lines don't end.
    """
    key = log_key(name, version)
    uri = store.uri_of(key)
    try:
        stored = store.read_tagged(key)
    except NotThere:
        return Log(uri, None, [])
    try:
        # Not `splitlines`: a reason may hold a separator of lines other than "\n".
        *texts, rest = stored.data.decode().split("\n")
    except UnicodeDecodeError:
        raise CorruptObject(f"{uri} is not UTF-8") from None
    if rest or not texts:
        raise CorruptObject(f"{uri} does not end at the end of a line: something was cut off")
    return Log(uri, stored, texts)
