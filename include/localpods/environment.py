"""The process of a container, and the image map; the README describes both."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ValidationError, model_validator

from localpods.objects import GPU_ANNOTATION, LOOPBACK, NODE_NAME, Json, uid_of
from localpods.state import SetupError, StateDir, read_json

log = logging.getLogger("localpods")

_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.-][A-Za-z0-9_.-]*)\)")
_MAP_FIELD = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


class ImageMissing(Exception):
    """An image has no usable environment here; the message says what to do."""


class Image(BaseModel, extra="forbid", frozen=True):
    """The environment that replaces an image on this machine."""

    path_prepend: tuple[str, ...] = ()
    env: dict[str, str] = {}
    cwd: str | None = None
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()

    @property
    def folders(self) -> list[str]:
        """The folders that must exist."""
        return [*self.path_prepend, *([self.cwd] if self.cwd else [])]

    @model_validator(mode="after")
    def _is_absolute(self) -> Self:
        for folder in self.folders:
            if not Path(folder).is_absolute():
                raise ValueError(f"{folder} must be absolute")
        return self


class _Content(BaseModel):
    """The content of the map's file: variables of all images, and images by name."""

    env: dict[str, str] = {}
    images: dict[str, Image]


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
            content = _Content.model_validate_json(self.path.read_bytes())
        except OSError as error:
            why = f"cannot read the image map {self.path}: {error.strerror}"
            raise SetupError(why) from None
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(map(str, fault["loc"])) or "content"
            raise SetupError(f"the image map {self.path}: {place}: {fault['msg']}") from None
        self._images = {
            _with_tag(name): image.model_copy(update={"env": {**content.env, **image.env}})
            for name, image in content.images.items()
        }


def _with_tag(name: str) -> str:
    return name if ":" in name.rpartition("/")[2] or "@" in name else f"{name}:latest"


class ContainerConfigError(Exception):
    """A container cannot be started as its specification asks; the message says why."""


@dataclass(frozen=True)
class Command:
    """A process to start."""

    argv: list[str]
    env: dict[str, str]
    cwd: str


def build_command(
    pod: Json, container: Json, image: Image, termination_message: Path, state: StateDir
) -> Command:
    """Build the process of a container.

    The last source of a variable wins: the system, the image map, the pod's `envFrom` and `env`,
    and the paths that exist on this machine only.

    Raises:
        ContainerConfigError: if the source of a variable or a volume does not exist.
    """
    folder = state.pod_dir(uid_of(pod))
    work, home = folder / "work", folder / "home"
    for needed in (work, home):
        needed.mkdir(mode=0o700, exist_ok=True)
    env = {
        "PATH": ":".join([*image.path_prepend, _SYSTEM_PATH]),
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "TMPDIR": str(state.temp_dir(uid_of(pod))),
        "HOSTNAME": pod["spec"].get("hostname") or pod["metadata"]["name"],
        **image.env,
    }
    gpus = (pod["metadata"].get("annotations") or {}).get(GPU_ANNOTATION)
    if gpus is not None:
        # An empty list hides all GPUs from a pod that requests none, as a cluster does.
        env["CUDA_VISIBLE_DEVICES"] = gpus
    env |= _env_from(pod, container, state)
    for variable in container.get("env") or []:
        value = _value(pod, variable, env, state)
        if value is not None:
            env[variable["name"]] = _loopback(pod, value)
    env |= _mounts(pod, container, folder / "volumes")
    env["TERMINATION_MESSAGE_PATH"] = str(termination_message)
    command = container.get("command") or list(image.entrypoint)
    # As for an image: a command in the pod also replaces the image's arguments.
    fallback = [] if container.get("command") else list(image.cmd)
    words = [*command, *(container.get("args") or fallback)]
    argv = [_loopback(pod, _expand(word, env)) for word in words]
    return Command(argv, env, image.cwd or str(work))


def _env_from(pod: Json, container: Json, state: StateDir) -> dict[str, str]:
    env: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        if reference := source.get("secretRef"):
            found = _secret(pod, reference, state)
            env |= {f"{source.get('prefix') or ''}{key}": found[key] for key in found}
        elif not (source.get("configMapRef") or {}).get("optional"):
            name = (source.get("configMapRef") or {}).get("name")
            raise ContainerConfigError(f'configmap "{name}" not found')
    return env


def _value(pod: Json, variable: Json, env: dict[str, str], state: StateDir) -> str | None:
    source = variable.get("valueFrom")
    if not source:
        return _expand(variable.get("value") or "", env)
    if reference := source.get("fieldRef"):
        return _field(pod, reference["fieldPath"])
    if reference := source.get("secretKeyRef"):
        found = _secret(pod, reference, state)
        if reference["key"] in found or reference.get("optional"):
            return found.get(reference["key"])
        raise ContainerConfigError(
            f"couldn't find key {reference['key']} in Secret "
            f"{pod['metadata']['namespace']}/{reference['name']} ({state.secrets_file})"
        )
    if all((reference or {}).get("optional") for reference in source.values()):
        return None
    kind = ", ".join(source)
    raise ContainerConfigError(
        f"variable {variable['name']}: {kind} is not supported on this machine"
    )


def _secret(pod: Json, reference: Json, state: StateDir) -> dict[str, str]:
    """Return the keys and values of a secret, from `{"name": {"key": "value"}}`."""
    name, path = reference["name"], state.secrets_file
    try:
        if path.exists() and path.stat().st_mode & 0o077:
            raise ContainerConfigError(f"{path} must be readable by its owner only: chmod 600")
        content = read_json(path) or {}
    except (ValueError, AssertionError):
        raise ContainerConfigError(f"{path} is not a JSON object") from None
    found = content.get(f"{pod['metadata']['namespace']}/{name}", content.get(name))
    if found is None and not reference.get("optional"):
        raise ContainerConfigError(f'secret "{name}" not found: write it into {path}')
    return dict(found or {})


def _field(pod: Json, path: str) -> str:
    metadata = pod["metadata"]
    if match := _MAP_FIELD.fullmatch(path):
        return str((metadata.get(match[1]) or {}).get(match[2], ""))
    values = {f"metadata.{key}": metadata[key] for key in ("name", "namespace", "uid")}
    values |= {f"status.{key}": LOOPBACK for key in ("hostIP", "podIP", "hostIPs", "podIPs")}
    values["spec.nodeName"] = NODE_NAME
    if path not in values:
        raise ContainerConfigError(f"fieldRef {path} is not supported")
    return str(values[path])


def _mounts(pod: Json, container: Json, folder: Path) -> dict[str, str]:
    """Create the volumes and return variables with their paths: mount paths do not exist here."""
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or []}
    env = {}
    for mount in container.get("volumeMounts") or []:
        name = mount["name"]
        if (volume := volumes.get(name)) is None:
            raise ContainerConfigError(f'volumeMount "{name}": the pod has no such volume')
        if "hostPath" in volume:
            directory = Path(volume["hostPath"]["path"])
        elif "emptyDir" in volume:
            directory = folder / name
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        else:
            raise ContainerConfigError(
                f'volume "{name}": only emptyDir and hostPath are supported on this machine'
            )
        variable = re.sub(r"[^A-Z0-9]", "_", name.upper())
        env[f"LOCALPODS_VOLUME_{variable}"] = str(directory / (mount.get("subPath") or ""))
    return env


def _expand(text: str, env: dict[str, str]) -> str:
    """Replace `$(NAME)`; unknown names stay as they are and `$$` becomes `$`, as in Kubernetes."""
    return _REFERENCE.sub(lambda m: "$" if m[0] == "$$" else env.get(m[1], m[0]), text)


def _loopback(pod: Json, text: str) -> str:
    """Replace the host name of a pod of the same Indexed Job, which no resolver knows here."""
    job = (pod["metadata"].get("labels") or {}).get("job-name")
    if job is None or job not in text:
        return text
    host = rf"(^|=|://){re.escape(job)}-\d+(\.[A-Za-z0-9.-]+)?(?=$|:\d+$|:\d+/)"
    return re.sub(host, rf"\g<1>{LOOPBACK}", text)
