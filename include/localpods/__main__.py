"""The command `localpods serve`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from localpods.gpus import count_gpus
from localpods.server import Settings, serve
from localpods.state import SetupError, StateDir

_EXIT_USAGE = 2
# A stack that stops its services waits 20 s before it kills them.
_DEFAULT_GRACE_S = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0, or 2 if the server cannot start as asked.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s localpods %(levelname)s %(message)s"
    )
    try:
        serve(
            Settings(
                state=StateDir(options.state),
                images=options.images,
                port=options.port,
                gpus=count_gpus() if options.gpus is None else options.gpus,
                grace=options.grace,
            )
        )
    except SetupError as error:
        print(f"localpods: {error}", file=sys.stderr)
        return _EXIT_USAGE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="localpods")
    commands = parser.add_subparsers(dest="command", required=True)
    serve_command = commands.add_parser(
        "serve", help="serve until SIGTERM or SIGINT; pods end with the server"
    )
    add = serve_command.add_argument
    add("--state", type=Path, required=True, help="folder for pods, token and kubeconfig")
    add("--images", type=Path, required=True, help="the image map, a JSON file")
    add("--port", type=int, help="default: the port of the last start, or any free one")
    add("--gpus", type=int, help="GPUs to hand out; default: the NVIDIA GPUs of this machine")
    add(
        "--grace",
        type=float,
        default=_DEFAULT_GRACE_S,
        help="seconds between SIGTERM and SIGKILL for pods when the server ends; "
        "default: %(default)s",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
