"""The platform's policy (`config/policy.yaml`): how loose a run may set the limits of items.

It is read from the checkout or the image alone, never from what starts a run. The run records its
text when it is created, so that every later verdict is by the same policy.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator

from tuneline.catalogue import Severity, get_item
from tuneline.config.data import DataConfig
from tuneline.config.pipeline import (
    LIMITS,
    PipelineConfig,
    explain,
    find_limit,
    item_of,
    limit_of,
    parse_yaml,
)
from tuneline.config.retired import current
from tuneline.config.section import Section, Value, shown
from tuneline.errors import UserError

# In a map of limits: whatever the map does not name.
OTHER = "other"


def policy_file() -> Path:
    """Return the file: `$TUNELINE_POLICY`, or that of this package (`config/policy.yaml`)."""
    return Path(os.environ.get("TUNELINE_POLICY") or Path(__file__).with_name("policy.yaml"))


class PolicyFile(Section):
    """The content of a policy. Limits are nested like the settings that they bound."""

    version: int = Field(ge=1)
    """Raise it with every change."""
    profile: Literal["production"] | None = None
    """Profile that every run must have; null allows both."""
    approval: bool = False
    """Every run under profile: production needs an approval."""
    limits: dict[str, Any] = Field({})
    """The loosest value of each limit. One that is not named is its setting's default; null leaves
    a limit free."""
    laptop: dict[str, Any] = Field({})
    """Limits under profile: laptop, above those."""
    models: dict[str, dict[str, Any]] = Field({})
    """Limits of single models by name, above both."""
    allowed_hosts: tuple[str, ...] = ()
    """Hosts that a run may send prompts to for its larger model, besides loopback; by https unless
    the host is listed as `http://host`."""
    upstream_keys: dict[str, str] = Field({})
    """Environment variables that it may send as a key, by host."""

    @field_validator("limits", "laptop", "models")
    @classmethod
    def _bounds_limits(cls, given: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        for limits in given.values() if info.field_name == "models" else [given]:
            for path, value in leaves(limits, ""):
                limit = find_limit(path)
                if not limit.fits(value):
                    kind = "a number" if limit.stricter in ("lower", "higher") else "a list"
                    wanted = " or ".join(map(str, limit.levels)) or kind
                    raise ValueError(f"{path} must be {wanted} or null, not {value!r}")
        return given


@dataclass(frozen=True)
class Looser:
    """A limit of an item that a run sets looser than the policy's `floor`."""

    setting: str
    item: str
    value: Value
    floor: Value

    @property
    def critical(self) -> bool:
        """True if it is a limit of a critical item."""
        return get_item(self.item).severity == Severity.CRITICAL

    @property
    def names(self) -> set[str]:
        """The names by which a waiver may call it: its own, or that of its map."""
        map_name = self.setting.rpartition(".")[0]
        limit = limit_of(map_name)
        return {self.setting, map_name} if limit and limit.item else {self.setting}

    def __str__(self) -> str:
        limit = limit_of(self.setting)
        assert limit is not None
        value = self.value if isinstance(self.value, float) else shown(self.value)
        return f"{self.setting} is {value}, the policy allows {limit.bound(self.floor)}"


@dataclass(frozen=True)
class Policy:
    """A policy as its file states it; of a stored one limits of earlier versions are left out."""

    text: str
    where: str
    stored: bool = False

    @property
    def sha256(self) -> str:
        """Hash of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def version(self) -> int:
        """The version that the file states."""
        return self.content.version

    @cached_property
    def content(self) -> PolicyFile:
        """What the file states; what is not a policy is refused."""
        document = parse_yaml(self.text, self.where)
        if self.stored:
            layers = {name: current(document.get(name) or {}) for name in ("limits", "laptop")}
            models = {k: current(v) for k, v in (document.get("models") or {}).items()}
            document = {**document, **layers, "models": models}
        try:
            return PolicyFile.model_validate(document)
        except ValidationError as error:
            problems = "; ".join(explain(entry, PolicyFile) for entry in error.errors())
            raise UserError(f"{self.where}: {problems}") from None

    def recorded(self) -> dict[str, Any]:
        """Return what `run.json` keeps of the policy."""
        return {"version": self.version, "sha256": self.sha256, "text": self.text}

    def floors(self, name: str, profile: str) -> dict[str, Value]:
        """Return the loosest value of each limit, for a model and a profile."""
        content = self.content
        layers = [content.limits, content.laptop if profile == "laptop" else {}]
        found = dict(_defaults())
        for layer in (*layers, content.models.get(name, {})):
            for path, value in leaves(layer, ""):
                # A number in place of a map bounds every key of the map.
                for inner in [key for key in found if key.startswith(f"{path}.")]:
                    found[inner] = value
                found[path] = value
        return found

    def looser(self, config: PipelineConfig) -> list[Looser]:
        """Return the limits that a configuration sets looser than the policy allows."""
        floors, values = self.floors(config.name, config.profile), limits_in(config)
        found = []
        for path, value in values.items():
            # A key of a map that is not named has the limit of all others.
            floor = floors.get(path, floors.get(f"{path.rpartition('.')[0]}.{OTHER}"))
            limit = limit_of(path)
            if limit is None or floor is None or value is None:
                continue
            if limit.is_looser(value, floor):
                found.append(Looser(path, item_of(path), value, floor))
        return found


def limits_in(config: BaseModel) -> dict[str, Value]:
    """Return the value of each limit in a configuration, by its path."""
    found: dict[str, Value] = {}
    for path, limit in LIMITS.items():
        found |= dict(leaves(limit.read(attrgetter(path)(config)), path))
    return found


def leaves(content: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the values of nested maps by their paths."""
    if not isinstance(content, Mapping):
        yield path, content
        return
    for name, value in content.items():
        yield from leaves(value, f"{path}.{name}" if path else str(name))


@cache
def _defaults() -> dict[str, Value]:
    """Return the limits of a run that sets none."""
    found = limits_in(PipelineConfig(data=DataConfig(source="rows")))
    # These two items fail by a limit of their own unless the map names them.
    failing = "data.removed_share_fail"
    found[f"{failing}.schema_validation"] = found["data.max_rejected_share"]
    found[f"{failing}.token_length_audit"] = found["data.max_too_long_share"]
    return found


def refuse_unbounded(config: PipelineConfig, policy: Policy, *, by_person: bool) -> None:
    """Refuse a run that the policy does not allow, before anything of it is carried out.

    A production run whose limit of a critical item is looser needs a waiver of that limit, which
    counts if a person starts the run. Other looser limits warn in the checklist.
    """
    content, where = policy.content, f"{policy.where}, version {policy.version}"
    if content.profile is not None and config.profile != content.profile:
        raise UserError(
            f"profile is {config.profile}, the policy ({where}) allows {content.profile} alone"
        )
    if config.profile != "production":
        return
    if content.approval and not config.approval:
        raise UserError(
            f"approval is false, the policy ({where}) asks for an approval of every release; set "
            "`approval: true`"
        )
    waived = {waiver.limit for waiver in config.waivers if by_person}
    found = [one for one in policy.looser(config) if one.critical and not waived & one.names]
    if found:
        waivers = ", ".join(
            f"{{item: {one.item}, limit: {one.setting}, reason: …}}" for one in found
        )
        allow = f"add to `waivers` {waivers}, which an approver has to accept"
        if not by_person:
            allow = "let the policy allow it (`models`): waivers count if a person starts the run"
        raise UserError(
            f"{'; '.join(map(str, found))} ({where}), and profile: production needs a waiver for "
            f"that; set a value that the policy allows, or {allow}"
        )


def read_policy() -> Policy:
    """Read the policy of this checkout or image."""
    path = policy_file()
    try:
        policy = Policy(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the policy {path} can't be read ({error}); restore config/policy.yaml, or name "
            "another file in TUNELINE_POLICY"
        ) from None
    # A wrong file is refused when it is read, not when a limit is looked up.
    _ = policy.content
    return policy


def recorded_policy(record: Mapping[str, Any] | None, where: str) -> Policy:
    """Return the policy that a run recorded; that of this checkout if it recorded none."""
    if not record:
        return read_policy()
    policy = _of_text(str(record["text"]), f"{where}: policy")
    if policy.sha256 != record.get("sha256"):
        raise UserError(f"{where}: the policy's text is not the one that was recorded")
    return policy


@cache
def _of_text(text: str, where: str) -> Policy:
    # A checklist asks for the policy of its run once for each item.
    return Policy(text, where, stored=True)
