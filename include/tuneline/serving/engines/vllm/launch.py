"""Run `vllm serve` with this project's environment, and let no process of it outlive it.

    python -m tuneline.serving.engines.vllm.launch [--threads N] [--stop-with-stdin] MODEL …

Everything else goes to `vllm serve`. With `--stop-with-stdin` this process stays beside vLLM: it
forwards SIGTERM and SIGINT, and ends vLLM when its standard input closes, that is with the
process that started it. vLLM's engine and workers are processes of their own, which go on if the
server's process is killed; so what is left of the process group is killed when the server ends.
The caller makes it the leader of a process group.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from tuneline.errors import EXIT_USER
from tuneline.machine.cores import default_threads
from tuneline.serving.processes import supervise

ERROR_PREFIX = "error: "
NOT_INSTALLED = "vllm is not installed in this image"


def serve_environment(threads: int) -> dict[str, str]:
    """Return the environment variables that vLLM runs with.

    Args:
        threads: CPU threads of the model; a GPU's worker does not depend on them.
    """
    return {
        # Nothing about a run leaves the machine, and no weights are looked for on a hub.
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        # Its processes talk over loopback; the default is the address of a network card.
        "VLLM_HOST_IP": "127.0.0.1",
        # Threads that spin while they wait slow everything else on the machine tenfold.
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": str(threads),
        # "auto" pins the threads to the same first cores in every server, so that two of them
        # on one machine share a core while another is idle.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # Half of a W4A16 checkpoint's name: activations stay in 16 bits, as on a GPU.
        "VLLM_CPU_INT4_W4A8": "0",
    }


def serve_command(arguments: Sequence[str]) -> list[str]:
    """Return the command line of `vllm serve` in this Python's environment."""
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *arguments]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; without `--stop-with-stdin` vLLM replaces this process."""
    parser = argparse.ArgumentParser(
        prog="python -m tuneline.serving.engines.vllm.launch", allow_abbrev=False
    )
    parser.add_argument("--threads", type=int, help="default: $TUNELINE_THREADS or all cores but 1")
    parser.add_argument(
        "--stop-with-stdin",
        action="store_true",
        help="end when standard input closes, that is with the process that started this one",
    )
    ours, rest = parser.parse_known_args(argv)
    if find_spec("vllm") is None:
        print(f"{ERROR_PREFIX}{NOT_INSTALLED}", file=sys.stderr)
        return EXIT_USER
    os.environ.update(serve_environment(ours.threads or default_threads()))
    command = serve_command(rest)
    if not ours.stop_with_stdin:
        os.execv(command[0], command)
    return supervise(command)


if __name__ == "__main__":
    sys.exit(main())
