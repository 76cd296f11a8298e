"""The command `localpods serve`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from localpods.objects import count_gpus
from localpods.server import serve
from localpods.state import SetupError, StateDir

# A stack that stops its services waits 20 s before it kills them.
_DEFAULT_GRACE_S = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 if the server cannot start as asked."""
    parser = argparse.ArgumentParser(prog="localpods")
    commands = parser.add_subparsers(required=True)
    what = "serve until SIGTERM or SIGINT; pods end with the server"
    add = commands.add_parser("serve", help=what).add_argument
    add("--state", type=Path, required=True, help="folder for pods, token and kubeconfig")
    add("--images", type=Path, required=True, help="the image map, a JSON file")
    add("--port", type=int, help="default: the port of the last start, or any free one")
    add("--gpus", type=int, help="GPUs to hand out; default: the NVIDIA GPUs of this machine")
    grace = "seconds that pods have to end when the server ends; default: %(default)s"
    add("--grace", type=float, default=_DEFAULT_GRACE_S, help=grace)
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s localpods %(levelname)s %(message)s"
    )
    gpus = count_gpus() if options.gpus is None else options.gpus
    try:
        serve(StateDir(options.state), options.images, options.port, gpus, options.grace)
    except SetupError as error:
        print(f"localpods: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
