"""The folders of the stack and the ports that it listens on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tuneline.config import Model, PipelineConfig, models
from tuneline.errors import UserError
from tuneline.files import private_folder
from tuneline.machine.checkout import project_root, stack_home
from tuneline.training.tracking import local_mlflow

LOOPBACK = "127.0.0.1"
# Takes a line of progress.
Say = Callable[[str], None]

_MAIN_DAG = "finetune_to_production"
_HIGHEST_PORT = 65535


@dataclass(frozen=True)
class Layout:
    """Folders and ports of one stack.

    Attributes:
        home: folder of everything that the stack writes (`.tuneline`).
        kubeconfig: kubeconfig of a cluster to use in place of local pods.
        log_sample_rate: share of the gateway's requests that is logged in the store.
    """

    project: Path
    home: Path
    ui_port: int
    gateway_port: int
    store: str
    kubeconfig: Path | None = None
    tracking_port: int = 5000
    log_sample_rate: float = 1.0

    def make_home(self) -> None:
        """Make the stack's folder for its owner alone: rows with personal data lie below it."""
        private_folder(self.home).chmod(0o700)

    @property
    def airflow_home(self) -> Path:
        """Airflow's folder: database, secrets, task logs."""
        return self.home / "airflow"

    @property
    def services(self) -> Path:
        """Folder with a file for each service that was started."""
        return self.home / "services"

    @property
    def pods(self) -> Path:
        """Folder of the local pods' state."""
        return self.home / "localpods"

    @property
    def mlflow(self) -> Path:
        """MLflow's folder: the database of runs."""
        return self.home / local_mlflow.FOLDER

    @property
    def airflow_python(self) -> Path:
        """Python of the Airflow environment, in which this code runs."""
        return Path(sys.executable)

    @property
    def ml_bin(self) -> Path:
        """Folder of the ML environment's commands."""
        return self.project / ".venv-ml" / "bin"

    def engine_bin(self, engine: str) -> Path:
        """Return the folder of the commands of the environment that an engine runs in."""
        return self.project / ".venv-vllm" / "bin" if engine == "vllm" else self.ml_bin

    @property
    def ui_url(self) -> str:
        """Address of the UI."""
        return f"http://localhost:{self.ui_port}"

    @property
    def gateway_url(self) -> str:
        """Address of the gateway."""
        return f"http://localhost:{self.gateway_port}"

    @property
    def tracking_url(self) -> str:
        """Address of MLflow."""
        return f"http://{LOOPBACK}:{self.tracking_port}"

    @property
    def ledger(self) -> str:
        """The usage ledger: a file or a URL."""
        own = self.home / "serving" / "usage.sqlite"
        return os.environ.get("TUNELINE_LEDGER") or str(own)

    def log_of(self, service: str) -> Path:
        """Return the path of a service's log."""
        return self.home / "logs" / f"{service}.log"


def main_dag_id() -> str:
    """Return the id of the main DAG that the stack starts runs of."""
    return _MAIN_DAG + main_model().suffix


def main_model() -> Model:
    """Return the model of the default name, or the first one."""
    known = {model.name: model for model in models()}
    default = PipelineConfig.model_fields["name"].default
    return known.get(default, next(iter(known.values())))


def find_layout() -> Layout:
    """Return the layout of this checkout's stack, adjusted by environment variables.

    `TUNELINE_HOME`, `TUNELINE_UI_PORT`, `TUNELINE_GATEWAY_PORT`, `TUNELINE_TRACKING_PORT`,
    `TUNELINE_STORE`, `TUNELINE_KUBECONFIG` and `TUNELINE_LOG_SAMPLE_RATE` replace the defaults.

    Raises:
        UserError: if a port or the rate is not a number in its range, or this code does not run
            from a checkout.
    """
    home = stack_home()
    kubeconfig = os.environ.get("TUNELINE_KUBECONFIG")
    return Layout(
        project=project_root(),
        home=home,
        ui_port=_port("TUNELINE_UI_PORT", 8080),
        gateway_port=_port("TUNELINE_GATEWAY_PORT", 8000),
        store=os.environ.get("TUNELINE_STORE") or home.as_uri(),
        kubeconfig=Path(kubeconfig).absolute() if kubeconfig else None,
        tracking_port=_port("TUNELINE_TRACKING_PORT", 5000),
        log_sample_rate=_share("TUNELINE_LOG_SAMPLE_RATE", 1.0),
    )


def _port(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or not 1 <= int(text) <= _HIGHEST_PORT:
        raise UserError(f"{name} must be a port number (1 to {_HIGHEST_PORT}), not {text!r}")
    return int(text)


def _share(name: str, default: float) -> float:
    text = os.environ.get(name) or str(default)
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UserError(f"{name} must be a share from 0 (log nothing) to 1, not {text!r}")
    return share
