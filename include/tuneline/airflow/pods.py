"""The pods that carry out the steps of a run."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.utils.pod_manager import PodManager, PodPhase
from airflow.sdk.exceptions import AirflowException, AirflowSkipException
from kubernetes.client import models as k8s
from kubernetes.client.exceptions import ApiException

from tuneline import CONTRACT_VERSION
from tuneline.airflow.failures import (
    DELETED,
    REASON,
    RUN_URI,
    StepRetryPolicy,
    ending_reason,
    goes_on_without,
    judge,
    memory_limit,
    out_of_memory,
    pending_reason,
    retry_delay,
    seconds_from,
)
from tuneline.airflow.links import EvidenceLink
from tuneline.airflow.open_lineage import step_lineage
from tuneline.artifacts.data import DATASET_VERSION
from tuneline.artifacts.governance import PodImage, image_of
from tuneline.catalogue import Size
from tuneline.config import Model, PodConfig
from tuneline.errors import TunelineError, first_line
from tuneline.run import Run
from tuneline.training.resources.out_of_memory import after_kill

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

_log = logging.getLogger(__name__)


def note_image(
    pod: k8s.V1Pod | None, run_uri: Callable[[], str], step: str, container: str
) -> None:
    """Store name and digest of the image of a step's pod next to its run, for lineage.

    The step's work counts without it: what can't be stored is logged.
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
        """Wait for the pod to leave `Pending`, and explain meanwhile why it does not."""
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


GPU_POOL = "gpu"
# https://kueue.sigs.k8s.io/docs/tasks/run/plain_pods
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

# The cluster may have to add a node first; one with a GPU takes up to half an hour.
_CPU_START_SECONDS = 10 * 60
_GPU_START_SECONDS = 30 * 60

_DEFAULTS = PodConfig()

# A step that resumes from its last checkpoint loses little when a try fails: it gets more tries.
_RESUMED = {"train"}
_RETRIES, _RESUMED_RETRIES = 2, 8
# Between SIGTERM and SIGKILL: training ends its step and uploads a checkpoint first.
_GRACE_SECONDS, _RESUMED_GRACE_SECONDS = 30, 120
# How often the triggerer adds to the log of a task that has deferred. It counts whole seconds and
# so may miss lines; the worker that goes on shows all of them.
_LOG_SECONDS = 30


# Where pods may write; all else of an image is read-only to them.
_WRITABLE = {"tmp": "/tmp", "home": "/home/tuneline", "cache": "/var/cache/tuneline"}  # noqa: S108 - the pod's own
# The volume of base models, which fetch_base alone writes.
_BASES, _BASES_PATH, _BASES_WRITER = "bases", "/var/lib/tuneline/bases", "fetch_base"


class StepPod(KubernetesPodOperator):
    """A `KubernetesPodOperator` for one step, sized by the `pods` section of its run.

    Where Airflow's `operators.default_deferrable` is set, it leaves its worker while the pod runs.

    Args:
        command: command line in the image, without ``--run``.
        size: its class, by which the run sizes it and chooses its image.
        judged: items whose verdicts decide, after the pod, whether the task succeeds.
    """

    operator_extra_links: Sequence[EvidenceLink] = (EvidenceLink(),)

    def __init__(
        self,
        *,
        task_id: str,
        command: Sequence[str],
        size: Size = Size.LIGHT,
        judged: Sequence[str] = (),
        arguments: Sequence[str] = ("--run", RUN_URI),
        **kwargs: Any,
    ) -> None:
        start = _GPU_START_SECONDS if size.uses_gpus else _CPU_START_SECONDS
        settings: dict[str, Any] = {
            "image": _DEFAULTS.image,
            "cmds": [*command, *arguments],
            "env_vars": _environment(),
            "env_from": _secrets(),
            "pod_template_file": _template(size),
            "random_name_suffix": False,
            "do_xcom_push": False,
            "get_logs": True,
            "log_pod_spec_on_failure": False,
            "log_events_on_failure": True,
            "on_finish_action": "delete_pod",
            "automount_service_account_token": False,
            "schedule_timeout_seconds": start,
            "startup_timeout_seconds": start,
            "startup_check_interval_seconds": seconds_from("TUNELINE_POD_POLL_SECONDS"),
            "base_container_status_polling_interval": seconds_from("TUNELINE_POD_POLL_SECONDS"),
            "poll_interval": seconds_from("TUNELINE_POD_POLL_SECONDS"),
            "logging_interval": _LOG_SECONDS,
            "active_deadline_seconds": _seconds(_DEFAULTS.deadline_hours),
            "termination_grace_period": (
                _RESUMED_GRACE_SECONDS if task_id in _RESUMED else _GRACE_SECONDS
            ),
            "retries": _RESUMED_RETRIES if task_id in _RESUMED else _RETRIES,
            "retry_delay": retry_delay(),
            "retry_policy": StepRetryPolicy(),
            **({"pool": GPU_POOL} if size.uses_gpus else {}),
        }
        super().__init__(task_id=task_id, **{**settings, **kwargs})
        self.size = size
        self.judged = list(judged)
        self.not_started = ""
        # The trigger's, in the worker that goes on after it.
        self.event: dict[str, Any] | None = None

    @classmethod
    def mapped(cls, task_id: str, commands: Any, *, size: Size, pool: str, label: str) -> Any:
        """Make a pod for each command that an earlier task returns; `label` names it in the UI.

        The scheduler reads some of a mapped task before its operator exists.
        """
        return cls.partial(
            task_id=task_id,
            size=size,
            pool=pool,
            retries=_RETRIES,
            retry_delay=retry_delay(),
            retry_policy=StepRetryPolicy(),
            map_index_template=label,
        ).expand(command=commands)

    def execute(self, context: Context) -> Any:
        """Size the pod for its run, run it to its end and judge what it left."""
        ti = context["ti"]
        deadlines = ti.xcom_pull(task_ids="prepare_run", key="deadlines") or {}
        sizes = ti.xcom_pull(task_ids="prepare_run", key="pods")
        pods = PodConfig.model_validate(sizes[self.size])
        self.apply(pods, deadlines.get(self.task_id))
        try:
            self.carry_out(context, pods)
        except AirflowSkipException:
            raise
        except AirflowException as error:
            if not goes_on_without(self, context, error):
                raise
        judge(run_uri_of(context), self.judged)
        for asset in self.outlets:
            context["outlet_events"][asset].extra = of_run(Run.open(run_uri_of(context)))
        return None

    def carry_out(self, context: Context, pods: PodConfig) -> Any:
        """Name the pod, which has its size by now, and run it to its end."""
        ti = context["ti"]
        self.name = pod_name(run_uri_of(context), self.task_id, ti.try_number, ti.map_index)
        return super().execute(context)

    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on after the trigger's event."""
        if self.pod is not None:  # It has ended before the task could defer.
            return self.execute_sync(context)
        # This worker may have another setting than the one that left the pod.
        self.event, self.deferrable = event, True
        return self.execute(context)

    def execute_async(self, context: Context) -> None:
        """Leave the worker until the trigger's event, then end as a task that stays in it."""
        # Without it the trigger's client looks for a kubeconfig alone, even in the cluster.
        self.in_cluster = self.hook.is_in_cluster
        if self.event is None:
            return super().execute_async(context)
        self.pod = self.remote_pod = self._left_to_trigger(self.event)
        if self.pod is None:
            return None
        if self.event["status"] == "timeout":
            why = self.pod_manager.why_pending(self.pod) or self.event["message"]
            self.not_started = f"the pod did not start: {why}"
            return self.cleanup(self.pod, self.pod, context=context)
        if self.pod.status.phase not in PodPhase.terminal_states and self.defers():
            return super().execute_async(context)
        return self.execute_sync(context)

    def defers(self) -> bool:
        """Return True if the task leaves its worker now: at first, and again if a trigger broke."""
        if self.event is None:
            return bool(self.deferrable)
        again = self.event.get("again", 0) + 1
        self.trigger_kwargs = {"again": again}
        return self.event["status"] == "error" and again <= self.MAX_REDEFER_ATTEMPTS

    def _left_to_trigger(self, event: dict[str, Any]) -> k8s.V1Pod | None:
        """Return the pod; None if it is gone but the trigger saw that it succeeded."""
        try:
            return self.hook.get_pod(event["name"], event["namespace"])
        except ApiException as error:
            if error.status != 404:
                raise
        if event["status"] == "success":
            return None
        raise AirflowException(f"Pod {event['name']} failed.\n{DELETED}")

    @cached_property
    def pod_manager(self) -> WatchfulPodManager:
        """The client that asks the API server about this pod."""
        return WatchfulPodManager(kube_client=self.client, callbacks=self.callbacks)

    def get_or_create_pod(self, pod_request_obj: k8s.V1Pod, context: Context) -> k8s.V1Pod:
        """Return the pod of a worker that died, or make one.

        The operator by itself resumes a pod that still runs, but repeats the work of one that
        finished while nothing watched it. Here that work counts.
        """
        found = self.find_pod(pod_request_obj.metadata.namespace, context)
        if found is not None and found.status.phase == PodPhase.SUCCEEDED:
            self.log.info("Pod %s of an earlier worker has finished", found.metadata.name)
            return found
        return super().get_or_create_pod(pod_request_obj, context)

    def await_pod_start(self, pod: k8s.V1Pod) -> None:
        """Wait for the pod to start, and remember the reason if it does not."""
        if pod.status and pod.status.phase in PodPhase.terminal_states:
            return
        try:
            super().await_pod_start(pod)
        except AirflowException as error:
            why = self.pod_manager.why_not_started(pod, error)
            self.not_started = f"the pod did not start: {why}"
            raise

    def cleanup(
        self,
        pod: k8s.V1Pod,
        remote_pod: k8s.V1Pod,
        xcom_result: dict[str, Any] | None = None,
        context: Context | None = None,
    ) -> None:
        """Delete the pod; if it failed, raise one sentence that the retry policy reads."""
        if context is not None:
            uri = partial(run_uri_of, context)
            note_image(remote_pod, uri, self.task_id, self.base_container_name)
        try:
            super().cleanup(pod, remote_pod, xcom_result, context)
        except AirflowSkipException:
            raise
        except AirflowException as error:
            why = None if REASON.search(str(error)) else self.why_failed(remote_pod, context)
            if why is None:
                raise
            # The operator's own message has less in it.
            raise AirflowException(f"Pod {remote_pod.metadata.name} failed.\n{why}") from None

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage | None:
        """Return what the step read, left and found; the OpenLineage provider asks for it."""
        run_uri = task_instance.xcom_pull(task_ids="prepare_run")
        return step_lineage(str(run_uri), self.task_id)

    get_openlineage_facets_on_failure = get_openlineage_facets_on_complete

    def why_failed(self, pod: k8s.V1Pod, context: Context | None) -> str | None:
        """Return `<kind>: <sentence>` in the form that steps leave, None if nothing is known."""
        if self.not_started:
            return f"retryable: {self.not_started}"
        if out_of_memory(pod) and context is not None:
            try:
                again, sentence = after_kill(
                    run_uri_of(context),
                    self.task_id,
                    self.size,
                    limit=memory_limit(pod),
                    pod=pod.metadata.name,
                )
            except TunelineError as error:
                again, sentence = (
                    True,
                    f"the pod ran out of memory, which could not be recorded: {error}",
                )
            return f"{'retryable' if again else 'user_error'}: {sentence}"
        return ending_reason(pod)

    def apply(self, pods: PodConfig, deadline_hours: float | None = None) -> None:
        """Take image, namespace, queue, deadline, resources, user and volumes of its class."""
        self.image = pods.gpu_image if pods.gpus else pods.image
        self.namespace = pods.namespace
        self.active_deadline_seconds = _seconds(deadline_hours or pods.deadline_hours)
        if pods.queue is not None:
            # Kueue keeps the pod pending until the quota has room, for hours if need be.
            self.labels = {**self.labels, QUEUE_LABEL: pods.queue}
            self.schedule_timeout_seconds = _seconds(pods.deadline_hours)
        size = {"memory": pods.memory, "cpu": pods.cpu}
        gpus = {pods.gpu_resource: str(pods.gpus)} if pods.gpus else {}
        self.container_resources = k8s.V1ResourceRequirements(requests=size, limits=size | gpus)
        # What the Pod Security Standard `restricted` asks of pods and containers, and more.
        self.security_context = k8s.V1PodSecurityContext(
            run_as_non_root=True,
            run_as_user=pods.user,
            run_as_group=pods.user,
            # Volumes belong to this group, so that the user can write them.
            fs_group=pods.user,
            fs_group_change_policy="OnRootMismatch",
            seccomp_profile=k8s.V1SeccompProfile(type="RuntimeDefault"),
        )
        self.container_security_context = k8s.V1SecurityContext(
            allow_privilege_escalation=False,
            capabilities=k8s.V1Capabilities(drop=["ALL"]),
            read_only_root_filesystem=True,
        )
        self.volumes = [
            k8s.V1Volume(name=name, empty_dir=k8s.V1EmptyDirVolumeSource()) for name in _WRITABLE
        ]
        self.volume_mounts = [
            k8s.V1VolumeMount(name=name, mount_path=path) for name, path in _WRITABLE.items()
        ]
        if pods.model_cache is not None:
            self._mount_bases(pods.model_cache)

    def _mount_bases(self, claim: str) -> None:
        """Mount the volume of base models and tell the step where."""
        source = k8s.V1PersistentVolumeClaimVolumeSource(claim_name=claim)
        self.volumes.append(k8s.V1Volume(name=_BASES, persistent_volume_claim=source))
        self.volume_mounts.append(
            k8s.V1VolumeMount(
                name=_BASES, mount_path=_BASES_PATH, read_only=self.task_id != _BASES_WRITER
            )
        )
        told = k8s.V1EnvVar(name="TUNELINE_BASES", value=_BASES_PATH)
        self.env_vars = [*(entry for entry in self.env_vars if entry != told), told]


def pod_name(
    run_uri: str, step: str, try_number: int, map_index: int | None = None, longest: int = 63
) -> str:
    """Return a DNS label that is unique to a run, a step, a map index and a try.

    With a fixed name, a worker that lost its pod between creating and recording it can't
    create a second one. The try keeps a new pod apart from one that is still being deleted.
    """
    digest = hashlib.sha256(run_uri.encode()).hexdigest()[:8]
    run_id = _label(run_uri.rsplit("/", 1)[-1])
    mapped = "" if map_index is None or map_index < 0 else f"-m{map_index}"
    end = f"-{digest}-{_label(step)}{mapped}-{try_number}"
    return f"{run_id[: longest - len(end)].strip('-') or 'run'}{end}"


def _label(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def run_uri_of(context: Context) -> str:
    """Return the URI of the run that `prepare_run` made for this run of the DAG."""
    return str(context["ti"].xcom_pull(task_ids="prepare_run"))


def of_run(run: Run) -> dict[str, Any]:
    """Return what an event of an asset says of the run that made the dataset or the release."""
    dataset = DATASET_VERSION.find(run)
    of: dict[str, Any] = {"run": run.uri, "model": run.config.name, "profile": run.config.profile}
    return {**of, "dataset": dataset.version} if dataset else of


def _seconds(hours: float) -> int:
    return int(hours * 3600)


def _template(size: Size) -> str | None:
    """Return the site's pod template for a class of steps.

    `TUNELINE_POD_TEMPLATE` is one file for all, or a folder with `<class>.yaml` or else `pod.yaml`.
    """
    given = os.environ.get("TUNELINE_POD_TEMPLATE") or None
    if given is None or not (folder := Path(given)).is_dir():
        return given
    own = folder / f"{size}.yaml"
    return str(own if own.is_file() else folder / "pod.yaml")


@cache
def _environment() -> list[k8s.V1EnvVar]:
    """Return the variables of every pod; one list for all, since making it takes milliseconds."""
    values = {
        "TUNELINE_CONTRACT": CONTRACT_VERSION,
        "TUNELINE_AIRFLOW_DAG_ID": "{{ dag.dag_id }}",
        "TUNELINE_AIRFLOW_RUN_ID": "{{ run_id }}",
        "TUNELINE_AIRFLOW_TASK_ID": "{{ task.task_id }}",
        "TUNELINE_AIRFLOW_TRY_NUMBER": "{{ ti.try_number }}",
        "TUNELINE_AIRFLOW_LAST_TRY": "{{ ti.try_number > ti.max_tries }}",
    }
    return [k8s.V1EnvVar(name=name, value=value) for name, value in values.items()]


def _secrets() -> list[k8s.V1EnvFromSource]:
    """Return references to the Kubernetes secrets of `TUNELINE_POD_SECRETS`."""
    names = os.environ.get("TUNELINE_POD_SECRETS", "")
    return [
        k8s.V1EnvFromSource(secret_ref=k8s.V1SecretEnvSource(name=name.strip()))
        for name in names.split(",")
        if name.strip()
    ]


class ModelPod(StepPod):
    """The pod of `tuneline logs <action>` for a model, sized by the `pods` section of its file.

    Args:
        chosen: id of the task that chose the store and the options, and returned them by name.
        options: names of the options that it chose; one that is empty is left out.
        arguments: what follows them; may hold templates.
    """

    operator_extra_links = ()

    def __init__(
        self,
        *,
        task_id: str,
        model: Model,
        action: str,
        chosen: str,
        options: Sequence[str] = (),
        arguments: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        values = f"ti.xcom_pull(task_ids='{chosen}')"
        given = [
            f"{{{{ '--{name}=' ~ {values}['{name}'] if {values}['{name}'] else '' }}}}"
            for name in ("store", *options)
        ]
        command = ["tuneline", "logs", action, "--model", model.name]
        call: dict[str, Any] = {"command": command, "arguments": [*given, *arguments]}
        super().__init__(task_id=task_id, size=Size.DATA, **call, **kwargs)
        self.model = model

    def execute(self, context: Context) -> Any:
        """Size the pod and run it to its end."""
        self.cmds = [argument for argument in self.cmds if argument]
        pods = self.model.pods.of(self.size)
        self.apply(pods)
        return self.carry_out(context, pods)

    def carry_out(self, context: Context, pods: PodConfig) -> Any:
        """Name the pod by the run of its DAG, and run it to its end."""
        ti = context["ti"]
        self.name = pod_name(f"{ti.dag_id}/{ti.run_id}", self.task_id, ti.try_number)
        return super(StepPod, self).execute(context)

    def why_failed(self, pod: k8s.V1Pod, context: Context | None) -> str | None:
        """Return `<kind>: <sentence>`; see `StepPod.why_failed`."""
        if not self.not_started and out_of_memory(pod):
            return (
                f"user_error: the pod ran out of memory (limit {memory_limit(pod)}); give it more "
                "(settings: {pods: {sizes: {data: {memory: …}}}} in the model's file)"
            )
        return f"retryable: {self.not_started}" if self.not_started else ending_reason(pod)
