"""A real MLflow server on a free port, started as the stack starts its own."""

import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tuneline.serving.processes import free_port
from tuneline.stack import tracking
from tuneline.stack.layout import Layout

_START_SECONDS = 120


class MlflowServer:
    """The server, which can be stopped and started again on the same port and file."""

    def __init__(self, home: Path) -> None:
        project = Path(__file__).parents[2]
        self.layout = Layout(project, home, 1, 2, home.as_uri(), tracking_port=free_port())
        self.url = self.layout.tracking_url
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        service = tracking.service(self.layout)
        # As fast as the tests are, with the Python that runs them.
        argv = [sys.executable, *service.argv[service.argv.index("-m") :]]
        with (self.layout.mlflow / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                argv, env=dict(service.env), cwd=service.cwd, stdout=log, stderr=log
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, (self.layout.mlflow / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop it as `make down` does."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def client(self) -> Any:
        """A client of its own, as somebody who looks at the runs."""
        from mlflow.tracking import MlflowClient

        return MlflowClient(tracking_uri=self.url)

    def steps(self, run_id: str, metric: str) -> list[int]:
        """Steps under which a metric was logged."""
        return [m.step for m in self.client().get_metric_history(run_id, metric)]
