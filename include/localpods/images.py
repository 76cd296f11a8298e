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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from localpods.state import SetupError

log = logging.getLogger("localpods")


class ImageMissing(Exception):
    """An image has no usable environment here; the message says what to do."""


@dataclass(frozen=True)
class Image:
    """The environment that replaces an image on this machine."""

    path_prepend: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()

    @property
    def folders(self) -> list[str]:
        """The folders that must exist."""
        return [*self.path_prepend, *([self.cwd] if self.cwd else [])]


class ImageMap:
    """The map's file; it is read again when it has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._read()

    def find(self, name: str) -> Image:
        """Return the environment of an image, with the variables for all pods.

        A missing tag means `latest`, as for a registry.

        Raises:
            ImageMissing: if it is not in the map, or its folders do not exist.
        """
        try:
            if self.path.stat().st_mtime_ns != self._stamp:
                self._read()
        except (OSError, SetupError) as error:
            log.warning("keeping the previous image map: %s", error)
        image = self._images.get(_with_tag(name))
        if image is None:
            known = ", ".join(sorted(self._images)) or "none"
            raise ImageMissing(f'image "{name}" is not in {self.path} (it has: {known}): add it')
        for folder in image.folders:
            if not Path(folder).is_dir():
                raise ImageMissing(
                    f'image "{name}" needs {folder}, which does not exist: build it, or correct '
                    f"{self.path}"
                )
        return image

    def _read(self) -> None:
        try:
            self._stamp = self.path.stat().st_mtime_ns
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except OSError as error:
            why = f"cannot read the image map {self.path}: {error.strerror}"
            raise SetupError(why) from None
        except ValueError as error:
            raise SetupError(f"the image map {self.path} is not JSON: {error}") from None
        if not isinstance(content, dict) or not isinstance(content.get("images"), dict):
            raise SetupError(f'the image map {self.path} must be an object with "images"')
        env, images = content.get("env", {}), content["images"].items()
        self._images = {_with_tag(name): self._image(name, entry, env) for name, entry in images}

    def _image(self, name: str, entry: Any, defaults: Any) -> Image:
        keys = set(Image.__dataclass_fields__)
        if not isinstance(entry, dict) or not entry.keys() <= keys:
            self._refuse(name, f"must be an object with no keys but {', '.join(sorted(keys))}")
        lists = {key: entry.get(key, []) for key in ("path_prepend", "entrypoint", "cmd")}
        for key, value in lists.items():
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                self._refuse(name, f"{key} must be a list of strings")
        for env in (defaults, entry.get("env", {})):
            if not isinstance(env, dict) or not all(isinstance(s, str) for s in env.values()):
                self._refuse(name, "env must map names to strings")
        tuples = {key: tuple(value) for key, value in lists.items()}
        env = {**defaults, **entry.get("env", {})}
        image = Image(env=env, cwd=entry.get("cwd"), **tuples)
        for folder in image.folders:
            if not Path(folder).is_absolute():
                self._refuse(name, f"{folder} must be absolute")
        return image

    def _refuse(self, image: str, why: str) -> NoReturn:
        raise SetupError(f'the image map {self.path}: "{image}": {why}')


def _with_tag(name: str) -> str:
    return name if ":" in name.rpartition("/")[2] or "@" in name else f"{name}:latest"
