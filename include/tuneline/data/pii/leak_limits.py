"""Say how much of each kind of personal data may leak, and whether that decides the verdict."""

from __future__ import annotations

from collections.abc import Iterable

from tuneline.config import DataConfig
from tuneline.config.data import OTHER_LEAKS, USUAL_LEAKS
from tuneline.data.pii.canaries.kinds import KINDS, entity_of
from tuneline.data.pii.entities import NER_ENTITIES
from tuneline.data.pii.profiles import demanded


def leak_limit(group: str, config: DataConfig) -> float:
    """Return the share of an entity, kind or `kind.language` that may leak."""
    kind = group.partition(".")[0]
    entity = entity_of(kind) if kind in KINDS else kind
    given = config.pii_max_leak
    if isinstance(given, dict):
        for limits in (given, USUAL_LEAKS):
            for name in (group, kind, entity):
                if name in limits:
                    return limits[name]
        given = OTHER_LEAKS
    return config.pii_max_leak_ner if entity in NER_ENTITIES else given


def decides(group: str, profiles: Iterable[str]) -> bool:
    """Return True if a profile demands the entity; a leak of another one only warns."""
    kind = group.partition(".")[0]
    wanted = demanded(profiles)
    return kind in wanted or (kind in KINDS and entity_of(kind) in wanted)
