"""New pods and jobs: what is required of them, and the fields that they get.

Only what this server would carry out wrongly is refused; a cluster checks far more.
"""

from __future__ import annotations

import copy
import re
import uuid
from collections.abc import Callable

from localpods.objects import Json, name_suffix, now
from localpods.quantities import parse_quantity
from localpods.replies import ApiError, bad_request, invalid

# Makes the error to raise from a field's path and its fault.
Reporter = Callable[[str, str], ApiError]

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_NAME_LIMIT = 253
# A job's name is a label of its pods.
_JOB_NAME_LIMIT = 63
_DEFAULT_GRACE_S = 30
_UNSUPPORTED = "is not supported on this machine: leave it out"
_UNSUPPORTED_JOB_FIELDS = (
    "podFailurePolicy",
    "successPolicy",
    "backoffLimitPerIndex",
    "maxFailedIndexes",
    "manualSelector",
    "suspend",
    "ttlSecondsAfterFinished",
)
# Airflow adds it to a pod whose task pushes an XCom, and reads the XCom by executing commands in
# it, which this server never does.
_XCOM_SIDECAR = "airflow-xcom-sidecar"


def admit_pod(body: Json, namespace: str) -> Json:
    """Return a new pod as the server keeps it.

    Args:
        body: the pod as the client sent it; it is not changed.
        namespace: the namespace of the request.

    Returns:
        The pod with its defaults, a UID and the phase `Pending`.

    Raises:
        ApiError: 400 or 422 if it is not accepted.
    """
    pod = _admit(body, "Pod", "v1", namespace)
    name = pod["metadata"]["name"]
    _check_pod_spec(pod["spec"], lambda field, why: invalid("Pod", name, f"spec.{field}", why))
    pod["status"] = {"phase": "Pending", "qosClass": "BestEffort"}
    return pod


def admit_job(body: Json, namespace: str) -> Json:
    """Return a new job as the server keeps it.

    Args:
        body: the job as the client sent it; it is not changed.
        namespace: the namespace of the request.

    Returns:
        The job with its defaults, a UID and the selector of its pods.

    Raises:
        ApiError: 400 or 422 if it is not accepted.
    """
    job = _admit(body, "Job", "batch/v1", namespace)
    name, spec = job["metadata"]["name"], job["spec"]

    def report(field: str, why: str) -> ApiError:
        return invalid("Job", name, f"spec.{field}", why)

    if len(name) > _JOB_NAME_LIMIT:
        raise invalid("Job", name, "metadata.name", f"at most {_JOB_NAME_LIMIT} letters")
    for field in [field for field, value in spec.items() if value is None]:
        del spec[field]
    for field in _UNSUPPORTED_JOB_FIELDS:
        if spec.get(field):
            raise report(field, _UNSUPPORTED)
    spec.setdefault("completionMode", "NonIndexed")
    if spec["completionMode"] == "Indexed" and "completions" not in spec:
        raise report("completions", "an Indexed job needs it")
    if "parallelism" not in spec:
        spec.setdefault("completions", 1)
    spec.setdefault("parallelism", 1)
    spec.setdefault("backoffLimit", 6)
    template = spec.get("template")
    if not isinstance(template, dict) or not isinstance(template.get("spec"), dict):
        raise report("template.spec", "required")
    _check_numbers(
        spec, ("completions", "parallelism", "backoffLimit", "activeDeadlineSeconds"), report
    )
    _check_pod_spec(template["spec"], lambda field, why: report(f"template.spec.{field}", why))
    uid = job["metadata"]["uid"]
    spec["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
    job["status"] = {"startTime": now()}
    return job


def _admit(body: Json, kind: str, api_version: str, namespace: str) -> Json:
    obj = copy.deepcopy(body)
    given = (obj.setdefault("kind", kind), obj.setdefault("apiVersion", api_version))
    metadata = obj.setdefault("metadata", {})
    if given != (kind, api_version):
        raise bad_request(f"expected a {kind} of {api_version}")
    if not isinstance(metadata, dict) or not isinstance(obj.get("spec"), dict):
        raise bad_request(f"a {kind} needs metadata and spec")
    if metadata.setdefault("namespace", namespace) != namespace:
        raise bad_request(
            f"the namespace of the object ({metadata['namespace']}) is not the one of the "
            f"request ({namespace})"
        )
    if not metadata.get("name") and metadata.get("generateName"):
        metadata["name"] = f"{metadata['generateName']}{name_suffix()}"
    name = metadata.get("name")
    if not isinstance(name, str) or not _SUBDOMAIN.fullmatch(name) or len(name) > _NAME_LIMIT:
        why = "lower case letters, digits, '-' and '.' (RFC 1123)"
        raise invalid(kind, str(name), "metadata.name", why)
    metadata["uid"] = str(uuid.uuid4())
    metadata["creationTimestamp"] = now()
    for field in ("resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds"):
        metadata.pop(field, None)
    return obj


def _check_pod_spec(spec: Json, report: Reporter) -> None:
    policy = spec.setdefault("restartPolicy", "Always")
    if policy != "Never":
        raise report(
            "restartPolicy",
            f"{policy} (Always is the default of Kubernetes) is not supported on this machine, "
            "where a container runs once: write Never",
        )
    if spec.get("terminationGracePeriodSeconds") is None:
        spec["terminationGracePeriodSeconds"] = _DEFAULT_GRACE_S
    _check_numbers(spec, ("terminationGracePeriodSeconds", "activeDeadlineSeconds"), report)
    for index, volume in enumerate(spec.get("volumes") or []):
        # The name of a folder.
        if not _DNS_LABEL.fullmatch(str(volume.get("name"))):
            raise report(f"volumes[{index}].name", f"{volume.get('name')!r} (RFC 1123)")
    if not spec.get("containers"):
        raise report("containers", "at least one is needed")
    seen: set[str] = set()
    for group in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(group) or []):
            _check_container(container, f"{group}[{index}]", report)
            if container["name"] in seen:
                raise report(f"{group}[{index}].name", f"{container['name']} is not unique")
            seen.add(container["name"])


def _check_container(container: Json, path: str, report: Reporter) -> None:
    name = container.get("name")
    # The name of a folder.
    if not isinstance(name, str) or not _DNS_LABEL.fullmatch(name):
        raise report(f"{path}.name", f"{name!r} is not a container name (RFC 1123)")
    if name == _XCOM_SIDECAR:
        raise report(f"{path}.name", f"an XCom {_UNSUPPORTED} (do_xcom_push=False)")
    if container.get("restartPolicy"):
        raise report(f"{path}.restartPolicy", _UNSUPPORTED)
    if not container.get("image"):
        raise report(f"{path}.image", "required")
    for group in ("requests", "limits"):
        for resource, value in ((container.get("resources") or {}).get(group) or {}).items():
            try:
                parse_quantity(value)
            except ValueError as error:
                raise report(f"{path}.resources.{group}[{resource}]", str(error)) from None


def _check_numbers(spec: Json, fields: tuple[str, ...], report: Reporter) -> None:
    for field in fields:
        value = spec.get(field)
        if value is not None and not (type(value) is int and value >= 0):
            raise report(field, "must be a whole number of at least 0")
