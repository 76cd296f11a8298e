"""The command `localpods`: serve a state directory, or stop what runs from it."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from localpods.quantities import parse_quantity
from localpods.state import SetupError, StateDir

_EXIT_USAGE = 2
_DEFAULT_GRACE_S = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0, or 2 when it cannot do what was asked.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s localpods %(levelname)s %(message)s"
    )
    try:
        if options.command == "serve":
            _serve(options)
        else:
            _stop(options)
    except SetupError as error:
        print(f"localpods: {error}", file=sys.stderr)
        return _EXIT_USAGE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="localpods", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="serve until SIGTERM; pods outlive the server")
    serve.add_argument("--state", type=Path, required=True, help="directory for pods and token")
    serve.add_argument("--images", type=Path, required=True, help="the image map, a JSON file")
    serve.add_argument("--port", type=int, help="default: that of the last time, or any")
    serve.add_argument(
        "--cpus", type=_cpus, help="CPUs that running pods may request together; default: no limit"
    )
    serve.add_argument("--gpus", type=int, help="default: the NVIDIA GPUs of this machine")
    serve.add_argument(
        "--kill-pods-on-exit", action="store_true", help="end all pods when the server ends"
    )
    stop = commands.add_parser("stop", help="end the server and all pods")
    stop.add_argument("--state", type=Path, required=True, help="directory of the server")
    for command in (serve, stop):
        command.add_argument(
            "--grace",
            type=float,
            default=_DEFAULT_GRACE_S,
            help="seconds that pods have to end when all are ended; default: %(default)s",
        )
    return parser


def _serve(options: argparse.Namespace) -> None:
    from localpods.capacity import Capacity, count_gpus
    from localpods.server import Settings, serve

    gpus = count_gpus() if options.gpus is None else options.gpus
    serve(
        Settings(
            state=StateDir(options.state),
            images=options.images,
            port=options.port,
            capacity=Capacity(options.cpus, gpus),
            kill_pods_on_exit=options.kill_pods_on_exit,
            grace=options.grace,
        )
    )


def _stop(options: argparse.Namespace) -> None:
    from localpods.shutdown import stop_pods, stop_server

    state = StateDir(options.state)
    if not state.root.is_dir():
        raise SetupError(f"{state.root} is no state directory: nothing was served from it")
    served = stop_server(state)
    ended = stop_pods(state, options.grace)
    server = "stopped the server" if served else "no server was running"
    print(f"{server}, ended {ended} containers")


def _cpus(text: str) -> Decimal:
    try:
        return parse_quantity(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
