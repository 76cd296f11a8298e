"""Training in pods: one, a job of several nodes, a sweep of ranks; what trackers still lack."""

from __future__ import annotations

import hashlib
import os
import time
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.operators.job import JOB_NAME_PREFIX, KubernetesJobOperator
from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger
from airflow.sdk import task
from airflow.sdk.exceptions import AirflowException, AirflowSkipException
from kubernetes.client import models as k8s
from kubernetes.client.exceptions import ApiException
from kubernetes_asyncio.client import BatchV1Api

from tuneline.airflow.failures import (
    HOPELESS_EXIT_CODES,
    REASON,
    RUN_URI,
    exit_code,
    fail_plainly,
    last_words,
    worker_retry_policy,
)
from tuneline.airflow.pods import GPU_POOL, StepPod, WatchfulPodManager, pod_name, run_uri_of
from tuneline.artifacts.training import unsynced
from tuneline.catalogue import Size
from tuneline.config import PodConfig
from tuneline.errors import TunelineError
from tuneline.run import Run

if TYPE_CHECKING:
    from airflow.sdk import Context

SERVICE = "tuneline-training"
# The label by which the Service selects its pods.
PART = {"tuneline.io/part": "training"}
_TASK = "tuneline.io/task"
_INDEX = "batch.kubernetes.io/job-completion-index"

# A pod's host name, `<job>-<index>`, is a DNS label too.
_LONGEST_NAME = 63 - len(JOB_NAME_PREFIX) - len("-999")
# Below the ports that Linux hands out. Each try uses another port, since pods of the try before may
# still be ending, and on one machine all pods share the ports.
_PORTS = range(20000, 30000)

# What the job takes over from the pod of the step.
_COPIED = (
    "kubernetes_conn_id namespace image cmds env_from volumes volume_mounts pod_template_file "
    "container_resources security_context container_security_context termination_grace_period "
    "active_deadline_seconds schedule_timeout_seconds startup_timeout_seconds "
    "startup_check_interval_seconds"
).split()

# If several pods have failed, the first of these kinds decides whether another try is worth it: the
# user's error, a killed pod, a pod that broke, a pod that lost another one.
_BLAME = ("user_error", "killed", "error", "retryable")


class TrainingPods(StepPod):
    """The pod of a training step, or an Indexed Job if the run asks for several nodes."""

    job: TrainingJob | None = None

    def carry_out(self, context: Context, pods: PodConfig) -> Any:
        """Run one pod like any other step, or several as a Job."""
        if pods.nodes == 1:
            return super().carry_out(context, pods)
        self.job = TrainingJob(
            task_id=self.task_id,
            step=self,
            nodes=pods.nodes,
            run_uri=run_uri_of(context),
            try_number=context["ti"].try_number,
        )
        self.job.run_to_its_end(context, self.event)
        return None

    def apply(self, pods: PodConfig, deadline_hours: float | None = None) -> None:
        """Take the run's configuration; see `StepPod.apply`."""
        super().apply(pods, deadline_hours)
        if pods.gpus > 1:
            # NCCL passes gradients between GPUs of a node through it; a container has only 64 MiB.
            memory = k8s.V1EmptyDirVolumeSource(medium="Memory")
            self.volumes.append(k8s.V1Volume(name="shared-memory", empty_dir=memory))
            self.volume_mounts.append(
                k8s.V1VolumeMount(name="shared-memory", mount_path="/dev/shm")  # noqa: S108 - the pod's own
            )

    def on_kill(self) -> None:
        """End the pods together with the task."""
        if self.job is None:
            super().on_kill()
        else:
            self.job.on_kill()


class TrainingJob(KubernetesJobOperator):
    """The Indexed Job that takes the place of a step's pod, with a copy of it for each node."""

    def __init__(
        self,
        *,
        task_id: str,
        step: StepPod,
        nodes: int,
        run_uri: str,
        try_number: int,
        **kwargs: Any,
    ) -> None:
        name = pod_name(run_uri, task_id, try_number, longest=_LONGEST_NAME)
        super().__init__(
            task_id=task_id,
            name=name,
            env_vars=[*step.env_vars, _rendezvous(name)],
            labels={**step.labels, **PART, _TASK: pod_name(run_uri, task_id, 0)},
            subdomain=_service(),
            automount_service_account_token=False,
            random_name_suffix=False,
            job_poll_interval=step.startup_check_interval_seconds,
            completion_mode="Indexed",
            completions=nodes,
            parallelism=nodes,
            # One that is lost takes the others along: the task tries again, from the checkpoint.
            backoff_limit=0,
            do_xcom_push=False,
            **{name: getattr(step, name) for name in _COPIED},
            **kwargs,
        )
        self._step, self._nodes = step, nodes

    @cached_property
    def pod_manager(self) -> WatchfulPodManager:
        """The client that asks the API server about the pods."""
        return WatchfulPodManager(kube_client=self.client, callbacks=self.callbacks)

    def run_to_its_end(self, context: Context, event: dict[str, Any] | None = None) -> None:
        """Create the job or find that of a lost worker, follow it to its end and delete it.

        Once its pods have started, a task that may defer leaves its worker until `event`.

        Raises:
            AirflowException: if the job failed; the message names the pod and the reason, in the
                form that the retry policy reads.
        """
        self.job_request_obj = self.build_job_request_obj(context)
        namespace = self.job_request_obj.metadata.namespace
        # A job that failed while the task was deferred has failed; it is not a lost worker's.
        self.job = (
            self.hook.get_job_status(event["job"], namespace) if event else self._find(namespace)
        )
        if self.job is None:
            # Known before the server answers: a task that is killed then ends its pods too.
            self.job = self.job_request_obj
            self.create_job(self.job_request_obj)
        else:
            self.log.info("Found the job %s of an earlier worker", self.job.metadata.name)
        name = self.job.metadata.name
        try:
            self._await_pods(name, namespace)
            if not self._has_ended(name, namespace) and self._step.defers():
                self._defer(name, namespace)
            self._show_log(name, namespace)
        except ApiException as error:
            if error.status != 404:
                raise
            self.log.info("A pod of %s was deleted", name)
        done = self.hook.wait_until_job_complete(name, namespace, self.job_poll_interval)
        try:
            if reason := self.hook.is_job_failed(done):
                raise AirflowException(self._why_failed(str(reason), name, namespace, context))
        finally:
            self._delete(name, namespace)

    def _find(self, namespace: str) -> k8s.V1Job | None:
        """Return the job of an earlier try that runs or has completed; delete a failed one."""
        label = f"{_TASK}={self.labels[_TASK]}"
        for job in self.job_client.list_namespaced_job(namespace, label_selector=label).items:
            if job.metadata.deletion_timestamp is not None:
                continue
            if not self.hook.is_job_failed(job):
                return job
            self._delete(job.metadata.name, namespace)
        return None

    def _pods(self, name: str, namespace: str) -> list[k8s.V1Pod]:
        found = self.client.list_namespaced_pod(namespace, label_selector=f"job-name={name}").items
        return sorted(found, key=_index)

    def _await_pods(self, name: str, namespace: str) -> None:
        """Wait for the pods to start, and log the reason while one does not."""
        limit = time.monotonic() + self.schedule_timeout_seconds
        while len(pods := self._pods(name, namespace)) < self._nodes:
            if self._has_ended(name, namespace):
                return
            if time.monotonic() > limit:
                self._delete(name, namespace)
                raise AirflowException(
                    f"retryable: {len(pods)} of {self._nodes} training pods were made in "
                    f"{self.schedule_timeout_seconds} s; the events of job {name} say why"
                )
            time.sleep(self.startup_check_interval_seconds)
        for pod in pods:
            try:
                self.await_pod_start(pod)
            except AirflowException as error:
                if self._has_ended(name, namespace):
                    return
                why = self.pod_manager.why_not_started(pod, error)
                self._delete(name, namespace)
                raise AirflowException(
                    f"Job {name} failed.\nretryable: training pod {_index(pod)} of {self._nodes} "
                    f"did not start: {why}"
                ) from None

    def _defer(self, name: str, namespace: str) -> None:
        """Leave the worker until pod 0 has ended, which the others don't outlive."""
        trigger = TrainingTrigger(
            pod_name=self._pods(name, namespace)[0].metadata.name,
            pod_namespace=namespace,
            trigger_start_time=datetime.now(UTC),
            base_container_name=self.base_container_name,
            kubernetes_conn_id=self.kubernetes_conn_id,
            in_cluster=self.hook.is_in_cluster,
            poll_interval=self.job_poll_interval,
            logging_interval=self._step.logging_interval,
            trigger_kwargs={**(self._step.trigger_kwargs or {}), "job": name},
        )
        self.defer(trigger=trigger, method_name="trigger_reentry")

    def _show_log(self, name: str, namespace: str) -> None:
        """Show the log of pod 0, which reports on the training, until its end."""
        if pods := self._pods(name, namespace):
            self.pod_manager.fetch_container_logs(pods[0], self.base_container_name, follow=True)

    def _has_ended(self, name: str, namespace: str) -> bool:
        return bool(self.hook.is_job_complete(self.hook.get_job_status(name, namespace)))

    def _why_failed(self, reason: str, name: str, namespace: str, context: Context) -> str:
        """Return `<kind>: <sentence>` of the pod whose failure is the cause of the others."""
        if reason == "DeadlineExceeded":
            return (
                f"Job {name} failed.\nuser_error: training ran past its deadline; raise "
                "training.max_hours or pods.deadline_hours"
            )
        blamed = []
        for pod in self._pods(name, namespace):
            if pod.status.phase == "Failed":
                kind, sentence = self._step_reason(pod, context)
                self.log.info("Pod %s: %s: %s", pod.metadata.name, kind, sentence)
                blamed.append((_BLAME.index(kind), _index(pod), sentence, pod))
        if not blamed:
            return (
                f"Job {name} failed.\nretryable: a training pod went away ({reason}: evicted, "
                "deleted, or its node lost); training resumes from the last checkpoint"
            )
        rank, index, sentence, pod = min(blamed, key=lambda entry: entry[:2])
        self._step.remote_pod = pod
        kind = "retryable" if _BLAME[rank] == "killed" else _BLAME[rank]
        return f"Job {name} failed.\n{kind}: pod {index} of {self._nodes}: {sentence}"

    def _step_reason(self, pod: k8s.V1Pod, context: Context) -> tuple[str, str]:
        if found := REASON.search(last_words(pod)):
            return found.group(1), found.group(2)
        if known := REASON.search(self._step.why_failed(pod, context) or ""):
            return ("killed" if known.group(1) == "retryable" else known.group(1)), known.group(2)
        code = exit_code(pod)
        if code in HOPELESS_EXIT_CODES:
            return "error", f"it ended with exit code {code}; see its log"
        return "killed", (
            f"it was killed (exit code {code}); training resumes from the last checkpoint"
        )

    def _delete(self, name: str, namespace: str) -> None:
        try:
            self.job_client.delete_namespaced_job(name, namespace, propagation_policy="Background")
        except ApiException as error:
            if error.status != 404:
                raise


class TrainingTrigger(KubernetesPodTrigger):
    """Shows the log of a job's pod until its end, in the triggerer."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return this class and its arguments."""
        return f"{__name__}.{type(self).__name__}", super().serialize()[1]

    async def on_kill(self) -> None:
        """End all pods together with the task."""
        async with self.hook.get_conn() as connection:
            await BatchV1Api(connection).delete_namespaced_job(
                self.trigger_kwargs["job"], self.pod_namespace, propagation_policy="Background"
            )


def _index(pod: k8s.V1Pod) -> int:
    return int(pod.metadata.labels[_INDEX])


def _service() -> str:
    return os.environ.get("TUNELINE_TRAINING_SERVICE", SERVICE)


def _rendezvous(name: str) -> k8s.V1EnvVar:
    """Return the address of pod 0: its name in the Service and a port of this job."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
    port = _PORTS[number % len(_PORTS)]
    host = f"{JOB_NAME_PREFIX}{name}-0.{_service()}"
    return k8s.V1EnvVar(name="TUNELINE_RENDEZVOUS", value=f"{host}:{port}")


@task(retries=2, retry_policy=worker_retry_policy)
@fail_plainly()
def ask_sweep(run_uri: str) -> list[list[str]]:
    """Return the command of each rank's pod; without any, the sweep is skipped."""
    from tuneline.run import Run
    from tuneline.serving.engines.limits import ranks_asked

    ranks = ranks_asked(Run.open(run_uri))
    return [["tuneline", "run", "sweep", "--r", str(r)] for r in ranks]


def sweep() -> tuple[Any, Any]:
    """Make the task that lists the ranks to try, and a pod for each in the GPU's pool."""
    asked = ask_sweep(RUN_URI)
    label = "r = {{ task.cmds[4] }}"
    return asked, StepPod.mapped("sweep", asked, size=Size.TRAIN, pool=GPU_POOL, label=label)


class SyncPod(StepPod):
    """A pod that is started only if a run was not tracked live.

    The pod finds out whether there is a key, since workers never see one. No task waits for this
    one, and an error skips it, since a release does not depend on a tracker.
    """

    def carry_out(self, context: Context, pods: PodConfig) -> Any:
        """Run the pod, or skip the task."""
        run_uri = run_uri_of(context)
        try:
            # After its pod has ended, nothing waits any more.
            if self.event is None and not unsynced(Run.open(run_uri)):
                raise AirflowSkipException("nothing to sync: each tracker got the run live")
            return super().carry_out(context, pods)
        except AirflowSkipException:
            raise
        except (TunelineError, AirflowException) as error:
            raise AirflowSkipException(_later(run_uri, error)) from None


def _later(run_uri: str, error: Exception) -> str:
    return f"not synced; `tuneline run sync-tracking --run {run_uri}` does it later: {error}"
