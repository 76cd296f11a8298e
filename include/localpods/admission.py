"""What a new pod or job must look like, and what it gets when it comes in."""

from __future__ import annotations

import copy
import re
import uuid
from collections.abc import Callable

from localpods.capacity import check_quantities
from localpods.objects import Json, name_suffix, now
from localpods.replies import ApiError, bad_request, invalid

# Makes the error to raise from a field's path and what is wrong with it.
Reporter = Callable[[str, str], ApiError]

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_NAME_LIMIT = 253
_LABEL_LIMIT = 63
_DEFAULT_GRACE_S = 30
_UNSUPPORTED_JOB_FIELDS = (
    "podFailurePolicy",
    "successPolicy",
    "backoffLimitPerIndex",
    "maxFailedIndexes",
    "manualSelector",
    "suspend",
)


def admit_pod(body: Json, namespace: str) -> Json:
    """Return a new pod as the server keeps it.

    Args:
        body: The pod as the client sent it; it stays as it is.
        namespace: The namespace of the request.

    Returns:
        The pod with its defaults, a UID and the phase `Pending`.

    Raises:
        ApiError: 400 or 422 when something is wrong with it.
    """
    pod = _admit(body, "Pod", "v1", namespace)
    name = pod["metadata"]["name"]
    spec = pod["spec"]
    _check_pod_spec(spec, lambda field, why: invalid("Pod", name, f"spec.{field}", why))
    pod["status"] = {"phase": "Pending", "qosClass": "BestEffort"}
    return pod


def admit_job(body: Json, namespace: str) -> Json:
    """Return a new job as the server keeps it.

    Args:
        body: The job as the client sent it; it stays as it is.
        namespace: The namespace of the request.

    Returns:
        The job with its defaults, a UID and the selector of its pods.

    Raises:
        ApiError: 400 or 422 when something is wrong with it.
    """
    job = _admit(body, "Job", "batch/v1", namespace)
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    spec = job["spec"]

    def report(field: str, why: str) -> ApiError:
        return invalid("Job", name, f"spec.{field}", why)

    if len(name) > _LABEL_LIMIT:
        # Its pods carry it as a label.
        raise invalid("Job", name, "metadata.name", f"at most {_LABEL_LIMIT} letters")
    _default_job_spec(spec, report)
    template = spec.get("template")
    if not isinstance(template, dict) or not isinstance(template.get("spec"), dict):
        raise report("template.spec", "required")
    labels = (template.get("metadata") or {}).get("labels") or {}
    _check_labels(labels, lambda field, why: report(f"template.metadata.{field}", why))
    _check_pod_spec(template["spec"], lambda field, why: report(f"template.spec.{field}", why))
    spec["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
    job["status"] = {"startTime": now()}
    return job


def _default_job_spec(spec: Json, report: Reporter) -> None:
    for field in _UNSUPPORTED_JOB_FIELDS:
        if spec.get(field):
            raise report(field, "not supported on this machine: leave it out")
    mode = spec.setdefault("completionMode", "NonIndexed")
    if mode not in {"NonIndexed", "Indexed"}:
        raise report("completionMode", "must be NonIndexed or Indexed")
    for field in [field for field, value in spec.items() if value is None]:
        del spec[field]
    if mode == "Indexed" and "completions" not in spec:
        raise report("completions", "an Indexed job needs it")
    if "parallelism" not in spec:
        spec.setdefault("completions", 1)
    spec.setdefault("parallelism", 1)
    spec.setdefault("backoffLimit", 6)
    for field in ("completions", "parallelism", "backoffLimit", "activeDeadlineSeconds"):
        if field in spec and not _is_whole(spec[field]):
            raise report(field, "must be a whole number, not negative")


def _admit(body: Json, kind: str, api_version: str, namespace: str) -> Json:
    obj = copy.deepcopy(body)
    if obj.setdefault("kind", kind) != kind or obj.setdefault("apiVersion", api_version) != (
        api_version
    ):
        raise bad_request(f"expected a {kind} of {api_version}")
    metadata = obj.setdefault("metadata", {})
    if not isinstance(metadata, dict) or not isinstance(obj.get("spec"), dict):
        raise bad_request(f"a {kind} needs metadata and spec")
    if metadata.setdefault("namespace", namespace) != namespace:
        raise bad_request(
            f"the namespace of the object ({metadata['namespace']}) is not that of the "
            f"request ({namespace})"
        )
    if not metadata.get("name") and metadata.get("generateName"):
        metadata["name"] = f"{metadata['generateName']}{name_suffix()}"
    name = metadata.get("name")
    if not isinstance(name, str) or not _SUBDOMAIN.fullmatch(name) or len(name) > _NAME_LIMIT:
        raise invalid(
            kind, str(name), "metadata.name", "lower case letters, digits, '-' and '.' (RFC 1123)"
        )
    _check_labels(
        metadata.get("labels") or {},
        lambda field, why: invalid(kind, name, f"metadata.{field}", why),
    )
    metadata["uid"] = str(uuid.uuid4())
    metadata["creationTimestamp"] = now()
    for field in ("resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds"):
        metadata.pop(field, None)
    return obj


def _check_labels(labels: Json, report: Reporter) -> None:
    for key, value in labels.items():
        if not isinstance(value, str) or not _LABEL_VALUE.fullmatch(value):
            raise report(f"labels[{key}]", f"{value!r} is no label value")
        if len(value) > _LABEL_LIMIT:
            raise report(f"labels[{key}]", f"at most {_LABEL_LIMIT} letters")


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
    for field in ("terminationGracePeriodSeconds", "activeDeadlineSeconds"):
        if spec.get(field) is not None and not _is_whole(spec[field]):
            raise report(field, "must be a whole number, not negative")
    for index, volume in enumerate(spec.get("volumes") or []):
        if not _DNS_LABEL.fullmatch(str(volume.get("name"))):
            raise report(f"volumes[{index}].name", f"{volume.get('name')!r} (RFC 1123)")
    if not spec.get("containers"):
        raise report("containers", "at least one is needed")
    seen: set[str] = set()
    for group in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(group) or []):
            below = _below(report, f"{group}[{index}]")
            _check_container(container, below)
            if container["name"] in seen:
                raise below("name", f"{container['name']} is there twice")
            seen.add(container["name"])


def _below(report: Reporter, path: str) -> Reporter:
    return lambda field, why: report(f"{path}.{field}", why)


def _check_container(container: Json, report: Reporter) -> None:
    name = container.get("name")
    if not isinstance(name, str) or not _DNS_LABEL.fullmatch(name):
        raise report("name", f"{name!r} is no container name (RFC 1123)")
    if container.get("restartPolicy"):
        raise report("restartPolicy", "not supported on this machine: leave it out")
    if not container.get("image"):
        raise report("image", "required")
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    check_quantities(container, report)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
