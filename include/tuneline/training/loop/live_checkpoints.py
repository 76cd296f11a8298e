"""Checkpoints in the store while training runs, so that a killed pod loses no more than a stretch.

They lie under `<run>/work/train/`, outside the step's own folder, which is
replaced whole when the step ends. A pointer file names the newest complete
checkpoint and the hash of each of its files; it is written last, so a kill at
any moment leaves the one before in force.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneline.store import CorruptObject, NotThere, Store


def fingerprint(*parts: Any) -> str:
    """A name for settings: checkpoints of other settings are of no use."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class LiveCheckpoints:
    """The newest checkpoint of one training, in a store."""

    def __init__(self, store: Store, prefix: str, settings: str) -> None:
        """Open the place.

        Args:
            store: where.
            prefix: key below which everything lies.
            settings: of `fingerprint`.
        """
        self.store, self.prefix, self.settings = store, prefix, settings

    @property
    def _pointer(self) -> str:
        return f"{self.prefix}/latest.json"

    def save(self, step: int, folders: Mapping[str, Path]) -> int:
        """Upload folders as the checkpoint of a step, then drop the one before.

        Args:
            step: optimiser step.
            folders: local folders by the name they get.

        Returns:
            Bytes written.
        """
        name = f"step-{step:06d}"
        # A leftover of an upload that was cut short.
        self.store.delete_prefix(f"{self.prefix}/{name}")
        files, written = {}, 0
        for label, folder in folders.items():
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                relative = f"{label}/{path.relative_to(folder).as_posix()}"
                ref = self.store.put_file(f"{self.prefix}/{name}/{relative}", path)
                files[relative] = ref.sha256
                written += ref.bytes
        before = self._latest()
        pointer = {"settings": self.settings, "step": step, "name": name, "files": files}
        self.store.put_bytes(self._pointer, json.dumps(pointer).encode())
        if before is not None and before["name"] != name:
            self.store.delete_prefix(f"{self.prefix}/{before['name']}")
        return written

    def restore(self, target: Path) -> int | None:
        """Download the newest checkpoint of these settings, if there is one.

        Args:
            target: local folder; the folders of `save` appear below it.

        Returns:
            Its step, or None to start from the beginning: nothing there, made with other
            settings, or damaged.
        """
        pointer = self._latest()
        if pointer is None or pointer["settings"] != self.settings:
            return None
        try:
            for relative, sha256 in pointer["files"].items():
                key = f"{self.prefix}/{pointer['name']}/{relative}"
                self.store.get_file(key, target / relative, sha256=sha256)
        except (NotThere, CorruptObject):
            return None
        return int(pointer["step"])

    def clear(self) -> None:
        """Delete everything: the training is done."""
        self.store.delete_prefix(self.prefix)

    def _latest(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self.store.get_bytes(self._pointer))
        except (NotThere, CorruptObject, json.JSONDecodeError):
            return None
        return found
