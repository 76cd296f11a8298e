"""LiteLLM's proxy as a child process, from the peers' environment."""

from __future__ import annotations

import json
import os
from pathlib import Path

import httpx

from tuneline.errors import TunelineError
from tuneline.serving.processes import ServerProcess

START_SECONDS = 180.0
KEY = "sk-bench"


class LitellmProxy(ServerProcess):
    """A proxy with one model in front of one upstream; live when the `with` block begins.

    Args:
        python: interpreter of the environment that has LiteLLM.
        upstream: address of the upstream, without `/v1`.
    """

    stop_seconds = 20.0
    poll_seconds = 0.2

    def __init__(
        self, *, python: Path, upstream: str, model: str, model_id: str, port: int, folder: Path
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
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
        self._program = python.parent / "litellm"
        command = [str(self._program), "--config", str(config)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        super().__init__(
            command,
            start_seconds=START_SECONDS,
            log_file=folder / "litellm.log",
            environment={**os.environ, "LITELLM_LOG": "ERROR"},
        )

    def launch(self) -> None:
        """Start the process without waiting.

        Raises:
            TunelineError: if LiteLLM is installed without its proxy.
        """
        if not self._program.is_file():
            raise TunelineError(f"there is no {self._program}: LiteLLM has no proxy installed")
        super().launch()

    def waiting_for(self) -> str | None:
        """Return what it lacks until it is live."""
        try:
            live = httpx.get(f"{self.url}/health/liveliness", timeout=2, trust_env=False).is_success
        except httpx.HTTPError:
            live = False
        return None if live else "it did not listen"

    def start_error(self, code: int | None, lacking: str) -> TunelineError:
        """Return an error with the last line that it wrote."""
        return TunelineError(f"LiteLLM did not start: {self.last_words()}")
