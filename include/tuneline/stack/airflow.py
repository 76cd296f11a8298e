"""Airflow on one machine: its settings, its secrets, its processes, and a client of its API."""

from __future__ import annotations

import json
import os
import secrets
from importlib import metadata, util
from pathlib import Path

from tuneline.config import models
from tuneline.files import write_whole
from tuneline.machine.airflow_api import AirflowApi
from tuneline.stack import clock
from tuneline.stack.layout import LOOPBACK, Layout
from tuneline.stack.services import Service

USER = "admin"
POD_SECRET = "tuneline-credentials"  # noqa: S105 - its name
# The API server reads task logs from disk; a log server would listen on every address.
_NO_SERVER = "--skip-serve-logs"
# Airflow's services and their commands; no triggerer, since no task defers.
COMPONENTS = {
    "api-server": ["api-server"],
    "scheduler": ["scheduler", _NO_SERVER],
    "dag-processor": ["dag-processor"],
}
# What an Airflow with Celery has besides: tasks leave its workers while their pods run.
_CELERY = {"worker": ["celery", "worker", _NO_SERVER], "triggerer": ["triggerer", _NO_SERVER]}
# Settings of the shell that the stack takes over, if its environment has Celery.
_TAKEN = (
    "AIRFLOW__CORE__EXECUTOR",
    "AIRFLOW__DATABASE__",
    "AIRFLOW__CELERY__",
    "AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE",
)

# Tasks are forked from the scheduler or the worker, so each has the modules that it has loaded.
# Without this, every pod task spends its first seconds importing the Kubernetes client.
_LOCAL_SETTINGS = '''\
"""Written by the stack: loads what tasks need before workers are forked."""

import sys

if {"scheduler", "worker"} & {*sys.argv}:
    import airflow.providers.cncf.kubernetes.operators.pod
    import airflow.providers.standard.operators.hitl
    import great_expectations
    import tuneline.data.gates.run_gate
    import tuneline.verdicts
'''


def prepare(layout: Layout) -> None:
    """Write the files that Airflow reads when it starts: secrets, password, local settings."""
    config = layout.airflow_home / "config"
    config.mkdir(parents=True, exist_ok=True)
    layout.airflow_home.chmod(0o700)
    (config / "airflow_local_settings.py").write_text(_LOCAL_SETTINGS)
    path, passwords = _secrets_file(layout), _passwords_file(layout)
    if not path.exists():
        # The signature of a token needs a key of 64 bytes.
        write_whole(path, json.dumps({n: secrets.token_hex(64) for n in ("jwt", "api")}).encode())
    known = json.loads(passwords.read_text()) if passwords.exists() else {}
    kept = {user: known.get(user) or secrets.token_urlsafe(12) for user in _roles()}
    write_whole(passwords, json.dumps(kept).encode())


def password(layout: Layout) -> str:
    """Return the password of the stack's user."""
    return str(json.loads(_passwords_file(layout).read_text())[USER])


def _roles() -> dict[str, str]:
    """Return the users of the UI and their roles: that of the stack, and each model's approvers."""
    approvers = {user.id or user.name for model in models() for user in model.file.approvers}
    # Airflow takes the two characters for separators.
    able = [name for name in sorted(approvers) if not {",", ":"} & {*name}]
    return dict.fromkeys(able, "user") | {USER: "admin"}


def environment(layout: Layout) -> dict[str, str]:
    """Return the environment of Airflow's processes, without settings of another Airflow."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "_AIRFLOW"))}
    made = json.loads(_secrets_file(layout).read_text())
    kubeconfig = layout.kubeconfig or layout.pods / "kubeconfig"
    cluster = {"conn_type": "kubernetes", "extra": {"kube_config_path": str(kubeconfig)}}
    api = {
        "conn_type": "http",
        "host": f"http://{LOOPBACK}:{layout.ui_port}",
        "login": USER,
        "password": password(layout),
    }
    core = {
        "AIRFLOW_HOME": str(layout.airflow_home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(layout.project / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        # Most tasks only wait for a pod; more of them at once would crowd two cores.
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://{LOOPBACK}:{layout.ui_port}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(map(":".join, _roles().items())),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(_passwords_file(layout)),
        "AIRFLOW__API__HOST": LOOPBACK,
        "AIRFLOW__API__PORT": str(layout.ui_port),
        "AIRFLOW__API__BASE_URL": layout.ui_url,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__SECRET_KEY": made["api"],
        "AIRFLOW__API_AUTH__JWT_SECRET": made["jwt"],
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(layout.airflow_home / "logs"),
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
        # A supervisor that missed the signal of its task's end looks this often.
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        # Tasks of a scheduler that crashed are taken over after this long; they find their pods.
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "60",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW_CONN_KUBERNETES_DEFAULT": json.dumps(cluster),
        "AIRFLOW_CONN_TUNELINE_API": json.dumps(api),
    }
    if layout.kubeconfig is None and (layout.pods / "secrets.json").exists():
        secrets_file = json.loads((layout.pods / "secrets.json").read_text())
        core["TUNELINE_POD_SECRETS"] = ",".join(secrets_file)
    if layout.kubeconfig is None:
        # Nobody else asks the local pods; a cluster is asked as rarely as by default.
        core["TUNELINE_POD_POLL_SECONDS"] = "0.2"
    if clock.environment():
        # Files are younger than a clock that was put back, and would be parsed without end.
        core["AIRFLOW__DAG_PROCESSOR__FILE_PARSING_SORT_MODE"] = "alphabetical"
        # For a second after it was moved, one process is days ahead of another.
        core["AIRFLOW__API_AUTH__JWT_LEEWAY"] = str(clock.MOST_SECONDS)
    if _has_celery():
        core["AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE"] = "True"
        core["AIRFLOW__CELERY__WORKER_CONCURRENCY"] = core["AIRFLOW__CORE__PARALLELISM"]
    return {
        **kept,
        **core,
        **_taken(),
        "TUNELINE_STORE": layout.store,
        "TUNELINE_LEDGER": layout.ledger,
        "TUNELINE_WAIT_SECONDS": "5",
        # Threads that spin while they wait slow everything else on a small machine.
        "OMP_WAIT_POLICY": "PASSIVE",
        "NO_PROXY": ",".join(filter(None, ["localhost", LOOPBACK, kept.get("NO_PROXY")])),
        "PYTHONUNBUFFERED": "1",
    }


def _taken() -> dict[str, str]:
    """Return what the shell says of executor, broker and database (requirements/celery.txt).

    Without Celery it says so of another Airflow, whose database is none of the stack's business.
    """
    if util.find_spec("airflow.providers.celery") is None:
        return {}
    return {name: value for name, value in os.environ.items() if name.startswith(_TAKEN)}


def _has_celery() -> bool:
    return _taken().get("AIRFLOW__CORE__EXECUTOR") == "CeleryExecutor"


def commands() -> dict[str, list[str]]:
    """Return the arguments of `airflow` for each of its services."""
    return COMPONENTS | (_CELERY if _has_celery() else {})


def components(layout: Layout) -> list[Service]:
    """Return Airflow's services."""
    env, notes = environment(layout), {"port": layout.ui_port}
    airflow = str(layout.airflow_python.with_name("airflow"))
    return [
        Service(name, [airflow, *arguments], env, layout.project, notes)
        for name, arguments in commands().items()
    ]


def migration_due(layout: Layout) -> bool:
    """Return True if the database is missing or belongs to another version of Airflow."""
    stamp = _stamp(layout)
    # One that the shell names may be another one than the last time.
    named = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN" in _taken()
    return named or not stamp.exists() or stamp.read_text() != metadata.version("apache-airflow")


def migrated(layout: Layout) -> None:
    """Record that the database fits this version of Airflow."""
    _stamp(layout).write_text(metadata.version("apache-airflow"))


def _stamp(layout: Layout) -> Path:
    return layout.airflow_home / "database-version"


def _secrets_file(layout: Layout) -> Path:
    return layout.airflow_home / "secrets.json"


def _passwords_file(layout: Layout) -> Path:
    return layout.airflow_home / "passwords.json"


def client_of(layout: Layout) -> AirflowApi:
    """Return a client of the stack's Airflow, as its user."""
    return AirflowApi(
        f"http://{LOOPBACK}:{layout.ui_port}",
        USER,
        lambda: password(layout),
        whose="the stack's user; is it another Airflow?",
        # On a busy machine Airflow may answer late, or find its database locked.
        tries=4,
        hint=f"; see {layout.log_of('api-server')}",
        trust_env=False,
    )
