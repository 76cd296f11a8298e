"""Lock the files of a model version by Object Lock, where the bucket has it."""

from __future__ import annotations

from collections.abc import Iterable

from tuneline.config.governance import GovernanceConfig
from tuneline.evidence import Measurement, measure
from tuneline.store import Store


def lock_files(store: Store, keys: Iterable[str], config: GovernanceConfig) -> list[Measurement]:
    """Lock the files of a version, if the run asks for it.

    Args:
        store: the store of the release.
        keys: the keys of its files.
        config: the governance section of the run.

    Returns:
        The number of files that are not locked, which warns: a directory, or a bucket without
        Object Lock, locks nothing. Empty if the run asks for no lock.
    """
    if config.lock_days is None:
        return []
    locked = [store.retain(key, config.lock_days, config.lock_mode) for key in keys]
    free = locked.count(False)
    return [measure("files_not_locked", free, "files", "==", 0, on_breach="warn")]
