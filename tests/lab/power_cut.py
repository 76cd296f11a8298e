"""A disk that loses power: it holds what it was told to hold, and nothing else for certain."""

import os
import re
from pathlib import Path

import pytest

_TEMPORARY = re.compile(r"/\.[^/]*\.[a-z0-9_]{8}$")


class Disk:
    """Notes what of a folder would be there after a power cut, at each rename and each sync."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        # Bytes of files and names in folders that were synced, by inode.
        self._bytes: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self.cuts: list[dict[str, bytes]] = []
        self._seen: set[int] = set()
        rename = Path.replace

        def replace(path: Path, target: Path) -> Path:
            done = rename(path, target)
            self._note()
            return done

        patch.setattr(os, "fsync", self._sync)
        patch.setattr(Path, "replace", replace)

    def _sync(self, descriptor: int) -> None:
        path, inode = Path(os.readlink(f"/proc/self/fd/{descriptor}")), os.fstat(descriptor).st_ino
        if path.is_dir():
            self._names[inode] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            self._bytes[inode] = path.read_bytes()
        self._note()

    def _note(self) -> None:
        # Temporary files hold no object.
        left = {k: v for k, v in self.after_cut().items() if not _TEMPORARY.search(k)}
        known = hash(frozenset(left.items()))
        if known not in self._seen:
            self._seen.add(known)
            self.cuts.append(left)

    def after_cut(self, *, names_lost: bool = False) -> dict[str, bytes]:
        """Return the files after a power cut: bytes that were not synced are gone."""
        found = {}
        for path in self.root.rglob("*"):
            if path.is_file() and not (names_lost and self._is_lost(path)):
                name = path.relative_to(self.root).as_posix()
                found[name] = self._bytes.get(path.stat().st_ino, b"")
        return found

    def _is_lost(self, path: Path) -> bool:
        chain = [path, *(p for p in path.parents if p.is_relative_to(self.root) and p != self.root)]
        return any(
            self._names.get(p.parent.stat().st_ino, {}).get(p.name) != p.stat().st_ino
            for p in chain
        )


def restored(files: dict[str, bytes], root: Path) -> Path:
    """Write the files of a disk into another folder."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root
