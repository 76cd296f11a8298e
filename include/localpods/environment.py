"""What a container's process gets: arguments, environment, working directory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from localpods.capacity import GPU_ANNOTATION
from localpods.images import Image
from localpods.objects import LOOPBACK, NODE_NAME, XCOM_SIDECAR, Json
from localpods.state import SecretError, StateDir

_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.-][A-Za-z0-9_.-]*)\)")
_MAP_FIELD = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


class ContainerConfigError(Exception):
    """A container cannot be started as its specification asks; the message says why."""


@dataclass(frozen=True)
class PodPaths:
    """The directories that stand for a pod's file system."""

    work: Path
    home: Path
    temp: Path
    xcom: Path
    volumes: Path

    @classmethod
    def of(cls, state: StateDir, uid: str) -> PodPaths:
        """Return the paths of a pod."""
        pod = state.pod_dir(uid)
        return cls(pod / "work", pod / "home", state.temp_dir(uid), pod / "xcom", pod / "volumes")

    def create(self) -> None:
        """Create what is missing."""
        for directory in (self.work, self.home, self.temp, self.xcom, self.volumes):
            directory.mkdir(mode=0o700, exist_ok=True)


@dataclass(frozen=True)
class Command:
    """A process to start."""

    argv: list[str]
    env: dict[str, str]
    cwd: str


def build_command(
    pod: Json,
    container: Json,
    *,
    image: Image,
    defaults: dict[str, str],
    paths: PodPaths,
    termination_message: Path,
    state: StateDir,
) -> Command:
    """Work out the process that stands for a container.

    Later sources of a variable win: the system's, the image map's for all pods, the image's,
    the pod's `envFrom` and `env`, and last the paths that only this machine knows.

    Args:
        pod: The pod.
        container: One of its containers.
        image: What stands for the container's image.
        defaults: Variables for all pods.
        paths: The pod's directories.
        termination_message: File whose content becomes the container's termination message.
        state: Where secrets are looked up.

    Returns:
        The process.

    Raises:
        ContainerConfigError: A variable's source or a volume is not there.
    """
    env = {
        "PATH": ":".join([*image.path_prepend, _SYSTEM_PATH]),
        "HOME": str(paths.home),
        "LANG": "C.UTF-8",
        "TMPDIR": str(paths.temp),
        "HOSTNAME": pod["spec"].get("hostname") or pod["metadata"]["name"],
        **defaults,
        **image.env,
        **_devices(pod),
    }
    env |= _env_from(pod, container, state)
    for variable in container.get("env") or []:
        value = _value(pod, variable, env, state)
        if value is not None:
            env[variable["name"]] = _loopback(pod, value)
    env |= _mounts(pod, container, paths)
    env["TERMINATION_MESSAGE_PATH"] = str(termination_message)
    if any(other["name"] == XCOM_SIDECAR for other in pod["spec"]["containers"]):
        env["AIRFLOW_XCOM_PATH"] = str(paths.xcom / "return.json")
    command = container.get("command") or list(image.entrypoint)
    # As for an image: a command of the pod's own also drops the image's arguments.
    fallback = [] if container.get("command") else list(image.cmd)
    words = [*command, *(container.get("args") or fallback)]
    argv = [_loopback(pod, _expand(word, env)) for word in words]
    return Command(argv, env, image.cwd or str(paths.work))


def _devices(pod: Json) -> dict[str, str]:
    annotations = pod["metadata"].get("annotations") or {}
    if GPU_ANNOTATION not in annotations:
        return {}
    # An empty list hides all GPUs from a pod that asked for none, as a cluster does.
    return {"CUDA_VISIBLE_DEVICES": annotations[GPU_ANNOTATION]}


def _env_from(pod: Json, container: Json, state: StateDir) -> dict[str, str]:
    env: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        prefix = source.get("prefix") or ""
        if reference := source.get("secretRef"):
            found = _secret(pod, reference, state)
            env |= {f"{prefix}{key}": value for key, value in (found or {}).items()}
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
        if found is not None and reference["key"] in found:
            return found[reference["key"]]
        if reference.get("optional"):
            return None
        raise ContainerConfigError(
            f"couldn't find key {reference['key']} in Secret "
            f"{pod['metadata']['namespace']}/{reference['name']} ({state.secrets_file})"
        )
    kind = ", ".join(source)
    if all((reference or {}).get("optional") for reference in source.values()):
        return None
    raise ContainerConfigError(f"variable {variable['name']}: no {kind} on this machine")


def _secret(pod: Json, reference: Json, state: StateDir) -> dict[str, str] | None:
    try:
        found = state.secret(pod["metadata"]["namespace"], reference["name"])
    except SecretError as error:
        raise ContainerConfigError(str(error)) from None
    if found is None and not reference.get("optional"):
        raise ContainerConfigError(
            f'secret "{reference["name"]}" not found: write it into {state.secrets_file}'
        )
    return found


def _field(pod: Json, path: str) -> str:
    metadata, spec = pod["metadata"], pod["spec"]
    if match := _MAP_FIELD.fullmatch(path):
        return str((metadata.get(match[1]) or {}).get(match[2], ""))
    values = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": NODE_NAME,
        "spec.serviceAccountName": spec.get("serviceAccountName") or "default",
        "status.hostIP": LOOPBACK,
        "status.podIP": LOOPBACK,
        "status.podIPs": LOOPBACK,
        "status.hostIPs": LOOPBACK,
    }
    if path not in values:
        raise ContainerConfigError(f"fieldRef {path} is not supported")
    return str(values[path])


def _mounts(pod: Json, container: Json, paths: PodPaths) -> dict[str, str]:
    """Create the volumes and tell their real paths, as mount paths do not exist here."""
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or []}
    env = {}
    for mount in container.get("volumeMounts") or []:
        name = mount["name"]
        volume = volumes.get(name)
        if volume is None:
            raise ContainerConfigError(f'volumeMount "{name}": the pod has no such volume')
        if "hostPath" in volume:
            directory = Path(volume["hostPath"]["path"])
        elif "emptyDir" in volume:
            directory = paths.xcom if name == "xcom" else paths.volumes / name
            directory.mkdir(mode=0o700, exist_ok=True)
        else:
            raise ContainerConfigError(
                f'volume "{name}": only emptyDir and hostPath exist on this machine'
            )
        variable = re.sub(r"[^A-Z0-9]", "_", name.upper())
        env[f"LOCALPODS_VOLUME_{variable}"] = str(directory / (mount.get("subPath") or ""))
    return env


def _expand(text: str, env: dict[str, str]) -> str:
    """Replace `$(NAME)`; unknown names stay as they are and `$$` is a `$`, as in Kubernetes."""

    def replaced(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return env.get(match[1], match[0])

    return _REFERENCE.sub(replaced, text)


def _loopback(pod: Json, text: str) -> str:
    """Replace the host name of a pod of the same Indexed Job, which no resolver knows here."""
    job = (pod["metadata"].get("labels") or {}).get("job-name")
    if job is None or job not in text:
        return text
    host = rf"(^|=|://){re.escape(job)}-\d+(\.[A-Za-z0-9.-]+)?(?=$|:\d+$|:\d+/)"
    return re.sub(host, rf"\g<1>{LOOPBACK}", text)
