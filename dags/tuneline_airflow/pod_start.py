"""A pod manager that explains in the task's log why a pod has not started yet."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.utils.pod_manager import PodManager
from kubernetes.client.exceptions import ApiException

from tuneline.errors import first_line
from tuneline_airflow.pod_reasons import pending_reason

if TYPE_CHECKING:
    from kubernetes.client import models as k8s

# A reason that has not changed is logged again after this time.
LOG_AGAIN_SECONDS = 120.0


class WatchfulPodManager(PodManager):
    """A `PodManager` that explains a pending pod."""

    async def await_pod_start(
        self,
        pod: k8s.V1Pod,
        schedule_timeout: int = 120,
        startup_timeout: int = 120,
        check_interval: int = 1,
    ) -> None:
        """Wait for the pod to leave `Pending`; see `PodManager.await_pod_start`."""
        explaining = asyncio.create_task(self._explain(pod, check_interval))
        try:
            await super().await_pod_start(pod, schedule_timeout, startup_timeout, check_interval)
        finally:
            explaining.cancel()
            with suppress(asyncio.CancelledError):
                await explaining

    async def _explain(self, pod: k8s.V1Pod, interval: float) -> None:
        """Log the reason that a pod is pending, again and again."""
        started, logged_at, logged = time.monotonic(), 0.0, None
        while True:
            reason = self.why_pending(pod)
            now = time.monotonic()
            if reason and (reason != logged or now - logged_at >= LOG_AGAIN_SECONDS):
                if logged is None:
                    # The provider opens a group that the UI shows folded until it is closed.
                    self.log.info("::endgroup::")
                logged, logged_at = reason, now
                self.log.warning("The pod has been pending for %.0f s: %s", now - started, reason)
            await asyncio.sleep(interval)

    def why_not_started(self, pod: Any, error: BaseException) -> str:
        """Return the reason that the pod is pending, or else the error of waiting for it."""
        return self.why_pending(pod) or first_line(error)

    def why_pending(self, pod: Any) -> str | None:
        """Return the reason that the pod is pending now, according to the API server."""
        with suppress(ApiException):
            return pending_reason(self.read_pod(pod))
        return None
