"""Answers of one model by what it was asked, in a file that only grows.

An answer is appended as soon as it is there, in one write that ends with a line break. A process
that is killed therefore loses the requests that were under way and no answer before them. What is
not a whole line (the last one of a process that died while it wrote, or of a full disk) counts as
not there. Several processes may append to one file.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tuneline.models.cache import cache_root

# A file of the cache that nobody has used for so long is removed, seconds.
KEPT_SECONDS = 60 * 24 * 3600.0


def request_key(*parts: Any) -> str:
    """Return the key of a request: a hash of all that decides its answer, as JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class KeptAnswers(Mapping[str, str]):
    """The answers in a file, by the keys of their requests.

    Args:
        path: the file; it and its folder are made with the first answer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self._answers: dict[str, str] = {}
        if path.is_file():
            # The clock of its last use, for `in_cache`.
            path.touch()
            self._answers.update(filter(None, map(_answer, path.read_bytes().split(b"\n"))))

    @classmethod
    def in_cache(cls, name: str) -> KeptAnswers:
        """Return the file of that name in the cache; remove those that nobody uses any more."""
        folder = cache_root() / "answers"
        _forget_unused(folder)
        return cls(folder / f"{name}.jsonl")

    def __getitem__(self, key: str) -> str:
        """Return the answer to a request."""
        return self._answers[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._answers)

    def __len__(self) -> int:
        return len(self._answers)

    def add(self, key: str, answer: str) -> None:
        """Append an answer."""
        if self._file is None:
            self._file = self._open()
        line = json.dumps([key, answer], ensure_ascii=True).encode() + b"\n"
        os.write(self._file, line)
        self._answers[key] = answer

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            # Otherwise the next answer would continue the torn line, and be lost with it.
            os.write(file, b"\n")
        return file

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _answer(line: bytes) -> tuple[str, str] | None:
    """Return the key and the answer of a line; None if it is not a whole one."""
    try:
        key, answer = json.loads(line)
    except (ValueError, TypeError):
        return None
    return (key, answer) if isinstance(key, str) and isinstance(answer, str) else None


def _forget_unused(folder: Path) -> None:
    if not folder.is_dir():
        return
    oldest = time.time() - KEPT_SECONDS
    for path in folder.glob("*.jsonl"):
        try:
            if path.stat().st_mtime < oldest:
                path.unlink()
        except FileNotFoundError:
            # Another process was faster.
            continue
