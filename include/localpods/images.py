"""The image map: the local environment that replaces each image.

    {"env": {"OMP_WAIT_POLICY": "PASSIVE"},
     "images": {"tuneline/ml:local": {
         "path_prepend": ["/abs/.venv-ml/bin"], "env": {}, "cwd": "/abs/dir",
         "entrypoint": ["tuneline"], "cmd": ["--help"]}}}

Only `images` is required, and for an image only `path_prepend`.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localpods.state import SetupError

log = logging.getLogger("localpods")

_IMAGE_KEYS = {"path_prepend", "env", "cwd", "entrypoint", "cmd"}


class ImageMissing(Exception):
    """An image has no usable environment here; the message says what to do."""


@dataclass(frozen=True)
class Image:
    """The environment that replaces an image on this machine."""

    path_prepend: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    cwd: str | None = None
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Content:
    images: dict[str, Image]
    env: dict[str, str]


class ImageMap:
    """The map's file; it is read again when it has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._content = _read(self.path)
        self._stamp = self.path.stat().st_mtime_ns

    @property
    def env(self) -> dict[str, str]:
        """The variables for all pods."""
        self._refresh()
        return self._content.env

    def find(self, name: str) -> Image:
        """Return the environment of an image; a missing tag means `latest`, as for a registry.

        Raises:
            ImageMissing: if it is not in the map, or its folders do not exist.
        """
        self._refresh()
        images = self._content.images
        image = images.get(name) or images.get(_with_tag(name))
        if image is None:
            known = ", ".join(sorted(images)) or "none"
            raise ImageMissing(f'image "{name}" is not in {self.path} (it has: {known}): add it')
        for directory in [*image.path_prepend, *([image.cwd] if image.cwd else [])]:
            if not Path(directory).is_dir():
                raise ImageMissing(
                    f'image "{name}" needs {directory}, which does not exist: build it, or '
                    f"correct {self.path}"
                )
        return image

    def _refresh(self) -> None:
        try:
            stamp = self.path.stat().st_mtime_ns
            if stamp != self._stamp:
                self._stamp = stamp
                self._content = _read(self.path)
        except (OSError, SetupError) as error:
            log.warning("keeping the previous image map: %s", error)


def _with_tag(name: str) -> str:
    return name if ":" in name.rpartition("/")[2] or "@" in name else f"{name}:latest"


def _read(path: Path) -> _Content:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SetupError(f"cannot read the image map {path}: {error.strerror}") from None
    except ValueError as error:
        raise SetupError(f"the image map {path} is not JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("images"), dict):
        raise SetupError(f'the image map {path} must be an object with "images"')
    images = {
        _with_tag(name): _image(path, name, entry) for name, entry in content["images"].items()
    }
    return _Content(images, _strings(path, "env", content.get("env", {})))


def _image(path: Path, name: str, entry: Any) -> Image:
    if not isinstance(entry, dict) or not entry.keys() <= _IMAGE_KEYS:
        raise SetupError(
            f'the image map {path}: "{name}" must be an object with no keys but '
            f"{', '.join(sorted(_IMAGE_KEYS))}"
        )
    lists = {key: entry.get(key, []) for key in ("path_prepend", "entrypoint", "cmd")}
    for key, value in lists.items():
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise SetupError(f'the image map {path}: "{name}": {key} must be a list of strings')
    cwd = entry.get("cwd")
    for directory in [*lists["path_prepend"], *([cwd] if cwd is not None else [])]:
        if not Path(directory).is_absolute():
            raise SetupError(f'the image map {path}: "{name}": {directory} must be absolute')
    return Image(
        path_prepend=tuple(lists["path_prepend"]),
        env=_strings(path, f"{name}: env", entry.get("env", {})),
        cwd=cwd,
        entrypoint=tuple(lists["entrypoint"]),
        cmd=tuple(lists["cmd"]),
    )


def _strings(path: Path, where: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(string, str) for string in value.values()):
        raise SetupError(f"the image map {path}: {where} must map names to strings")
    return value
