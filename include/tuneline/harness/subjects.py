"""The models that can be asked: bytes that an engine here serves, or an endpoint that runs already.

Both are asked through an `EngineClient`, so that whoever asks need not know which it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from tuneline.config import DeploymentConfig
from tuneline.errors import UserError
from tuneline.harness.served_models import scoring_threads, serve
from tuneline.serving.client import EngineClient
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.engine import ServedModel

_ENDPOINT = re.compile(r"(?P<url>https?://[^#]+?)/?(?:/v1/?)?(?:#(?P<model>.+))?$")


class Subject(Protocol):
    """A model that can be asked."""

    @property
    def parallel(self) -> int:
        """Requests that are sent at once."""

    def identity(self) -> list[Any]:
        """Return all that decides its answers beside the requests, as JSON."""

    def client(self) -> AbstractContextManager[EngineClient]:
        """Make it ready, and return a client of it; leaving the context ends what was started."""


@dataclass(frozen=True)
class Served:
    """Bytes that their engine serves here, with the slots and the context of a deployment."""

    model: ServedModel
    deployment: DeploymentConfig

    @property
    def parallel(self) -> int:
        """The deployment's slots."""
        return self.deployment.parallel

    def identity(self) -> list[Any]:
        """Return the hash of the bytes, the engine's version and the sizes it is started with."""
        version = get_engine(self.model.engine).version()
        sizes = [self.deployment.parallel, self.deployment.context_tokens]
        return [self.model.sha256, version, *sizes]

    @contextmanager
    def client(self) -> Iterator[EngineClient]:
        """Start the engine.

        Raises:
            UserError: if it can't be started here.
            TunelineError: if it does not answer.
        """
        with (
            serve(self.model, self.deployment, threads=scoring_threads()) as server,
            server.client() as client,
        ):
            yield client


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint that somebody else runs: a gateway, an engine, an API.

    Attributes:
        url: `http://host:port`, without `/v1`.
        model: the model id that requests ask for.
        api_key: its key; None for an endpoint that asks for none.
        parallel: requests that are sent at once.
    """

    url: str
    model: str
    api_key: str | None = None
    parallel: int = 4

    def identity(self) -> list[Any]:
        """Return its address and model id. The bytes behind them may change unseen."""
        return ["endpoint", self.url, self.model]

    def client(self) -> EngineClient:
        """Return a client; nothing is started."""
        return EngineClient(self.url, model=self.model, api_key=self.api_key)


def endpoint_of(address: str, api_key_env: str | None, parallel: int) -> Endpoint:
    """Return the endpoint that an address names.

    Args:
        address: `https://host/v1#MODEL_ID`.
        api_key_env: environment variable with its key; None for an endpoint that asks for none.
        parallel: requests that are sent at once.

    Raises:
        UserError: if the address names no model, or the variable is not set.
    """
    found = _ENDPOINT.match(address)
    if found is None or not found["model"]:
        raise UserError(
            f"{address}: name the model behind the endpoint, as in https://host/v1#MODEL_ID"
        )
    key = os.environ.get(api_key_env) if api_key_env else None
    if api_key_env and not key:
        raise UserError(f"--api-key-env {api_key_env}: the variable is not set")
    return Endpoint(found["url"], found["model"], key, parallel)
