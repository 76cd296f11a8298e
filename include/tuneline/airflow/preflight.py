"""Check what a run needs from Airflow and the cluster before its first pod.

Without these checks a run waits for ever (a pool that does not exist) or fails after the data phase
(an image that no node can get). What may not be asked is printed, and passes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowException
from kubernetes import client as k8s
from kubernetes.config import ConfigException
from urllib3.exceptions import HTTPError

from tuneline.airflow.pods import GPU_POOL
from tuneline.airflow.rest import connected_api
from tuneline.catalogue import Size
from tuneline.errors import RetryableError, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuneline.config import PipelineConfig, PodConfig, User

_CONNECTION = "kubernetes_default"
# What the operator does with pods, as verb and resource.
_RIGHTS = (
    *((verb, "pods") for verb in ("create", "get", "list", "patch", "delete")),
    ("get", "pods/log"),
)
# That of Airflow, where it runs in a pod.
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_TIMEOUT_SECONDS = 15
# The tag of images that are in no registry.
_LOCAL = ":local"
# A kubelet reports no more images by default (`nodeStatusMaxImages`): of others nothing is known.
_MOST_REPORTED = 50


def check_surroundings(config: PipelineConfig, approvers: Sequence[User] = ()) -> None:
    """Refuse a run that this Airflow or its cluster can't carry out.

    Raises:
        UserError: if the pool of the GPU steps, a person, a right in the namespace or an image is
            missing.
    """
    _check_pool()
    _check_people([*approvers, *config.evaluation.reviewers])
    try:
        hook = KubernetesHook(conn_id=_CONNECTION)
        api = hook.api_client
        # The operator takes the same one.
        own = _OWN_NAMESPACE.read_text() if _OWN_NAMESPACE.exists() else "default"
        _check_rights(api, config.pods.namespace or hook.get_namespace() or own)
        _check_images(api, {image for size in Size for image in _images(config.pods_of(size))})
    except (AirflowException, ConfigException, k8s.ApiException, HTTPError) as error:
        why = getattr(error, "reason", None) or error
        print(f"not checked, the rights in the namespace and the images: {why}")


def _check_people(users: Sequence[User]) -> None:
    """Refuse names that FAB does not know: a question to them would wait for ever."""
    named = [user.name for user in users if user.id is None]
    if not str(conf.get("core", "auth_manager", fallback="")).endswith(".FabAuthManager"):
        return
    try:
        unknown = [name for name in named if not connected_api().has_fab_user(name)]
    except (RetryableError, UserError, AirflowException) as error:
        print(f"not checked, whether Airflow has the users {', '.join(named)}: {error}")
        return
    if unknown:
        raise UserError(
            f"Airflow has no user {', '.join(unknown)}, named by approvers or "
            "evaluation.reviewers; write the user name of the login, or {id: 7, name: …}"
        )


def _check_pool() -> None:
    try:
        there = connected_api().has_pool(GPU_POOL)
    except (RetryableError, UserError, AirflowException) as error:
        print(f"not checked, the pool {GPU_POOL}: {error}")
        return
    if not there:
        raise UserError(
            f"Airflow has no pool {GPU_POOL!r}, so no training step would ever start; make it, a "
            f"slot for each GPU: airflow pools set {GPU_POOL} 1 'Steps that hold a GPU' "
            "--include-deferred"
        )


def _check_rights(api: Any, namespace: str) -> None:
    missing = []
    for verb, resource in _RIGHTS:
        kind, _, part = resource.partition("/")
        asked = {"namespace": namespace, "verb": verb, "resource": kind, "subresource": part}
        review = k8s.AuthorizationV1Api(api).create_self_subject_access_review(
            {"spec": {"resourceAttributes": asked}}, _request_timeout=_TIMEOUT_SECONDS
        )
        if not review.status.allowed:
            missing.append(f"{verb} {resource}")
    if missing:
        raise UserError(
            f"the connection {_CONNECTION} may not {', '.join(missing)} in the namespace "
            f"{namespace!r}; grant its user or service account these rights, or name another "
            "namespace (in the connection, TUNELINE_NAMESPACE or pods.namespace)"
        )


def _images(pods: PodConfig) -> set[str]:
    return {pods.image, pods.gpu_image} if pods.gpus else {pods.image}


def _check_images(api: Any, images: set[str]) -> None:
    """Refuse images without a registry that no node has; those of a registry are not looked up."""
    local = {image for image in images if image.endswith(_LOCAL)}
    if not local:
        return
    try:
        nodes = k8s.CoreV1Api(api).list_node(_request_timeout=_TIMEOUT_SECONDS).items
    except k8s.ApiException as error:
        # Nodes belong to no namespace, so that few may list them.
        print(f"not checked, whether a node has {', '.join(sorted(local))}: {error.reason}")
        return
    if any(len(node.status.images or []) >= _MOST_REPORTED for node in nodes):
        return
    # An image that lost its tag to a newer one has no names.
    images_there = [image for node in nodes for image in node.status.images or []]
    known = [name for image in images_there for name in image.names or []]
    if missing := sorted(i for i in local if not any(name.endswith(i) for name in known)):
        raise UserError(
            f"no node of the cluster has the image {', '.join(missing)}, which is in no registry; "
            "push it to one and name it (TUNELINE_IMAGE, TUNELINE_GPU_IMAGE, TUNELINE_ENGINE_IMAGE)"
        )
