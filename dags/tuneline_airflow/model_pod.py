"""The pods of what is done for a model outside of a run: its logs and their comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kubernetes.client import models as k8s

from tuneline.config import Model
from tuneline_airflow.pod_reasons import ending_reason, memory_limit, out_of_memory
from tuneline_airflow.pods import StepPod, pod_name

if TYPE_CHECKING:
    from airflow.sdk import Context

    from tuneline.config import PodConfig


class ModelPod(StepPod):
    """The pod of `tuneline logs <action>` for a model, sized by the `pods` section of its file.

    Args:
        task_id: id of the task.
        model: the model.
        action: the action.
        chosen: id of the task that chose the store and the options, and returned them by name.
        options: names of the options that it chose; one that is empty is left out.
        arguments: what follows them; may hold templates.
    """

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
        super().__init__(task_id=task_id, command=command, arguments=[*given, *arguments], **kwargs)
        self.model = model

    def execute(self, context: Context) -> Any:
        """Size the pod and run it to its end."""
        self.cmds = [argument for argument in self.cmds if argument]
        pods = self.model.pods
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
                "(settings: {pods: {memory: …}} in the model's file)"
            )
        return f"retryable: {self.not_started}" if self.not_started else ending_reason(pod)
