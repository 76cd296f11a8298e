"""The process of a container: arguments, environment, working folder.

It inherits none of the server's variables. It gets PATH (the image's `path_prepend`, then the
system's), HOME and TMPDIR (the pod's own, deleted with it), LANG, HOSTNAME, the variables of the
image map and of the pod's specification, and the paths that replace those of a real pod.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from localpods.gpus import GPU_ANNOTATION
from localpods.images import Image
from localpods.objects import LOOPBACK, NODE_NAME, Json, uid_of
from localpods.state import SecretError, StateDir

_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.-][A-Za-z0-9_.-]*)\)")
_MAP_FIELD = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


class ContainerConfigError(Exception):
    """A container cannot be started as its specification asks; the message says why."""


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
    termination_message: Path,
    state: StateDir,
) -> Command:
    """Build the process of a container.

    The last source of a variable wins: the system, the image map for all pods, the image, the
    pod's `envFrom` and `env`, and the paths that exist on this machine only.

    Args:
        pod: the pod.
        container: one of its containers.
        image: the environment that replaces the container's image.
        defaults: the variables for all pods.
        termination_message: the file whose content becomes the termination message.
        state: the state folder with the pod's folder and the secrets.

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
        **defaults,
        **image.env,
        **_devices(pod),
    }
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


def _devices(pod: Json) -> dict[str, str]:
    annotations = pod["metadata"].get("annotations") or {}
    if GPU_ANNOTATION not in annotations:
        return {}
    # An empty list hides all GPUs from a pod that requests none, as a cluster does.
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
    raise ContainerConfigError(
        f"variable {variable['name']}: {kind} is not supported on this machine"
    )


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


def _mounts(pod: Json, container: Json, folder: Path) -> dict[str, str]:
    """Create the volumes and return variables with their paths: mount paths do not exist here."""
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

    def replaced(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return env.get(match[1], match[0])

    return _REFERENCE.sub(replaced, text)


def _loopback(pod: Json, text: str) -> str:
    """Replace the host name of a pod of the same Indexed Job, which no resolver knows here.

    The pods of a distributed training meet at the name of pod 0.
    """
    job = (pod["metadata"].get("labels") or {}).get("job-name")
    if job is None or job not in text:
        return text
    host = rf"(^|=|://){re.escape(job)}-\d+(\.[A-Za-z0-9.-]+)?(?=$|:\d+$|:\d+/)"
    return re.sub(host, rf"\g<1>{LOOPBACK}", text)
