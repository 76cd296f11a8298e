"""The command line: `tuneline`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from tuneline import __version__
from tuneline.cli import accounts, data, evaluation, logs, measuring, releases, runs, serving
from tuneline.terminal import guarded

# Workers of OpenMP that spin at barriers slow everything else on the machine tenfold.
# It must be set before torch or llama.cpp load their runtime.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments, run the command, and turn errors into one sentence."""
    arguments = parser().parse_args(argv)
    return guarded(lambda: arguments.command(arguments))


def parser() -> argparse.ArgumentParser:
    """Make the parser of all commands; each sets `command` to the function that runs it."""
    made = argparse.ArgumentParser(
        prog="tuneline",
        description="From raw instruction data to a served, fine-tuned LLM, with evidence.",
    )
    made.add_argument("--version", action="version", version=f"tuneline {__version__}")
    commands = made.add_subparsers(title="commands", required=True, metavar="COMMAND")
    runs.add_runs(commands)
    releases.add_releases(commands)
    data.add_data(commands)
    evaluation.add_evaluating(commands)
    serving.add_serving(commands)
    accounts.add_accounts(commands)
    evaluation.add_review(commands)
    releases.add_licenses(commands)
    logs.add_logs(commands)
    measuring.add_drift(commands)
    measuring.add_bench(commands)
    return made
