"""New pods and jobs: their required fields and their defaults.

Only what this server would carry out wrongly is refused; a cluster checks far more.
"""

from __future__ import annotations

import copy
import re
import uuid

from localpods.objects import Json, bad_request, invalid, name_suffix, now, parse_quantity

# Names of pods, containers and volumes become names of files and hosts.
_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_DNS_LABEL = re.compile(_LABEL)
_DEFAULT_GRACE_S = 30
_UNSUPPORTED = "is not supported on this machine: leave it out"
_UNSUPPORTED_JOB_FIELDS = (
    "podFailurePolicy successPolicy backoffLimitPerIndex maxFailedIndexes manualSelector suspend "
    "ttlSecondsAfterFinished"
).split()
# Airflow adds it to a pod whose task pushes an XCom, and reads the XCom by executing commands in
# it, which this server never does.
_XCOM_SIDECAR = "airflow-xcom-sidecar"


class _Fault(Exception):
    """A field that is not accepted: its path, and the fault with its remedy."""


def admit_pod(body: Json, namespace: str) -> Json:
    """Return a new pod with its defaults, a UID and the phase `Pending`.

    Raises:
        ApiError: 400 or 422 if it is not accepted.
    """
    pod = _admit(body, "Pod", "v1", namespace)
    try:
        _check_pod_spec(pod["spec"], "spec")
    except _Fault as fault:
        raise invalid("Pod", pod["metadata"]["name"], *fault.args) from None
    pod["status"] = {"phase": "Pending", "qosClass": "BestEffort"}
    return pod


def admit_job(body: Json, namespace: str) -> Json:
    """Return a new job with its defaults, a UID and the selector of its pods.

    Raises:
        ApiError: 400 or 422 if it is not accepted.
    """
    job = _admit(body, "Job", "batch/v1", namespace)
    job["spec"] = {field: value for field, value in job["spec"].items() if value is not None}
    try:
        _check_job_spec(job["spec"])
    except _Fault as fault:
        raise invalid("Job", job["metadata"]["name"], *fault.args) from None
    uid = job["metadata"]["uid"]
    job["spec"]["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
    job["status"] = {"startTime": now()}
    return job


def _check_job_spec(spec: Json) -> None:
    for field in _UNSUPPORTED_JOB_FIELDS:
        if spec.get(field):
            raise _Fault(f"spec.{field}", _UNSUPPORTED)
    if spec.setdefault("completionMode", "NonIndexed") == "Indexed" and "completions" not in spec:
        raise _Fault("spec.completions", "an Indexed job needs it")
    spec.setdefault("parallelism", 1)
    spec.setdefault("completions", spec["parallelism"])
    spec.setdefault("backoffLimit", 6)
    _check_numbers(
        spec, "spec", "completions", "parallelism", "backoffLimit", "activeDeadlineSeconds"
    )
    pod = (spec.get("template") or {}).get("spec")
    if not isinstance(pod, dict):
        raise _Fault("spec.template.spec", "required")
    _check_pod_spec(pod, "spec.template.spec")


def _admit(body: Json, kind: str, api_version: str, namespace: str) -> Json:
    obj = copy.deepcopy(body)
    kinds = (obj.setdefault("kind", kind), obj.setdefault("apiVersion", api_version))
    metadata = obj.setdefault("metadata", {})
    parts = isinstance(metadata, dict) and isinstance(obj.get("spec"), dict)
    if kinds != (kind, api_version) or not parts:
        raise bad_request(f"expected a {kind} of {api_version}, with metadata and spec")
    if (given := metadata.setdefault("namespace", namespace)) != namespace:
        raise bad_request(f"the object's namespace {given} is not the request's {namespace}")
    if not metadata.get("name") and metadata.get("generateName"):
        metadata["name"] = f"{metadata['generateName']}{name_suffix()}"
    name = metadata.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        why = "lower case letters, digits, '-' and '.' (RFC 1123)"
        raise invalid(kind, str(name), "metadata.name", why)
    metadata["uid"] = str(uuid.uuid4())
    metadata["creationTimestamp"] = now()
    for field in ("resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds"):
        metadata.pop(field, None)
    return obj


def _check_pod_spec(spec: Json, path: str) -> None:
    policy = spec.setdefault("restartPolicy", "Always")
    if policy != "Never":
        raise _Fault(
            f"{path}.restartPolicy",
            f"{policy} (Always is the default of Kubernetes) is not supported on this machine, "
            "where a container runs once: write Never",
        )
    if spec.get("terminationGracePeriodSeconds") is None:
        spec["terminationGracePeriodSeconds"] = _DEFAULT_GRACE_S
    _check_numbers(spec, path, "terminationGracePeriodSeconds", "activeDeadlineSeconds")
    if spec.get("initContainers"):
        raise _Fault(f"{path}.initContainers", _UNSUPPORTED)
    for index, volume in enumerate(spec.get("volumes") or []):
        _check_name(volume, f"{path}.volumes[{index}]")
    containers = spec.get("containers") or []
    for index, container in enumerate(containers):
        _check_container(container, f"{path}.containers[{index}]")
    if not containers or len({container["name"] for container in containers}) < len(containers):
        raise _Fault(f"{path}.containers", "at least one is needed, and no two of the same name")


def _check_container(container: Json, path: str) -> None:
    _check_name(container, path)
    if container["name"] == _XCOM_SIDECAR:
        raise _Fault(f"{path}.name", f"an XCom {_UNSUPPORTED} (do_xcom_push=False)")
    if not container.get("image"):
        raise _Fault(f"{path}.image", "required")
    for group in ("requests", "limits"):
        for resource, value in ((container.get("resources") or {}).get(group) or {}).items():
            try:
                parse_quantity(value)
            except ValueError as error:
                raise _Fault(f"{path}.resources.{group}[{resource}]", str(error)) from None


def _check_name(part: Json, path: str) -> None:
    if not _DNS_LABEL.fullmatch(str(part.get("name"))):
        raise _Fault(f"{path}.name", f"{part.get('name')!r} is not a name (RFC 1123)")


def _check_numbers(spec: Json, path: str, *fields: str) -> None:
    for field in fields:
        value = spec.get(field)
        if value is not None and not (type(value) is int and value >= 0):
            raise _Fault(f"{path}.{field}", "must be a whole number of at least 0")
