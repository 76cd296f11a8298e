"""LiteLLM's proxy as a child process, from the peers' environment."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from tuneline.errors import TunelineError

START_SECONDS = 180.0
KEY = "sk-bench"


class LitellmProxy:
    """The proxy with one model in front of one upstream; live when the `with` block begins.

    Args:
        python: interpreter of the environment that has LiteLLM.
        upstream: address of the upstream, without `/v1`.
        model: the upstream's model; clients ask for `model_id`.
        model_id: what clients write as `model`.
        port: to listen on.
        folder: for its configuration and log.
    """

    def __init__(
        self, *, python: Path, upstream: str, model: str, model_id: str, port: int, folder: Path
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "litellm.log"
        config = folder / "litellm.yaml"
        document = {
            "model_list": [
                {
                    "model_name": model_id,
                    "litellm_params": {
                        "model": f"openai/{model}",
                        "api_base": f"{upstream}/v1",
                        "api_key": "unused",
                    },
                }
            ],
            "general_settings": {"master_key": KEY},
        }
        # JSON is YAML.
        config.write_text(json.dumps(document))
        self._command = [str(python.parent / "litellm"), "--config", str(config)]
        self._command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if not Path(self._command[0]).is_file():
            raise TunelineError(f"there is no {self._command[0]}: LiteLLM has no proxy installed")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "LITELLM_LOG": "ERROR"},
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._is_live():
                return self
            time.sleep(0.2)
        self.stop()
        words = self._log.read_text(errors="replace").strip().splitlines()
        raise TunelineError(f"LiteLLM did not start: {words[-1] if words else 'it said nothing'}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End it."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _is_live(self) -> bool:
        try:
            address = f"{self.url}/health/liveliness"
            with urllib.request.urlopen(address, timeout=2) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False
