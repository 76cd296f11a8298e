"""Note which image a step's pod ran, as the cluster reported it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from tuneline.artifacts.governance import PodImage, image_of
from tuneline.errors import TunelineError
from tuneline.run import Run

if TYPE_CHECKING:
    from kubernetes.client import models as k8s

_log = logging.getLogger(__name__)


def note_image(
    pod: k8s.V1Pod | None, run_uri: Callable[[], str], step: str, container: str
) -> None:
    """Store name and digest of the image of a pod beside its run, for lineage.

    The step's own work counts without it: what can't be stored is logged.

    Args:
        pod: the pod with its last status.
        run_uri: function that returns the URI of the run; it is asked where there is an image.
        step: the step that the pod carried out.
        container: name of the container that did.
    """
    statuses = getattr(getattr(pod, "status", None), "container_statuses", None) or []
    found = next((s for s in statuses if s.name == container and s.image_id), None)
    if pod is None or found is None:
        return
    ran = PodImage(image=found.image, image_id=found.image_id, pod=pod.metadata.name)
    try:
        image_of(step).put(Run.open(run_uri()), ran)
    except TunelineError as error:
        _log.warning("The image %s of %s is not noted for lineage: %s", ran.image_id, step, error)
