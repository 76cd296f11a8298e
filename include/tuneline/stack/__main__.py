"""`python -m tuneline.stack up|down|demo|demo-drift|review|status`."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable

from tuneline.artifacts.governance import ReleasePointer
from tuneline.artifacts.releases import pointer_of
from tuneline.config.data import SAMPLE
from tuneline.errors import EXIT_OK, TunelineError
from tuneline.serving.following.release import newest_release
from tuneline.stack import serving
from tuneline.stack.demo import demo, review, show_addresses
from tuneline.stack.demo_drift import demo_drift
from tuneline.stack.layout import find_layout, main_dag_id, main_model
from tuneline.stack.lifecycle import Stack
from tuneline.store import open_store
from tuneline.terminal import guarded

_began = time.monotonic()


def main() -> int:
    """Run a command and turn errors into one sentence and their exit code."""
    parser = argparse.ArgumentParser(prog="tuneline.stack", description=__doc__)
    parser.add_argument("command", choices=sorted(_COMMANDS))
    parser.add_argument("--data", default="", help="dataset of the demo; a sample without it")
    parser.add_argument("--config", default="", help="YAML file of settings for the demo")
    arguments = parser.parse_args()
    # A request to end, or the loss of the terminal, does what Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    return guarded(lambda: _COMMANDS[arguments.command](arguments))


def say(text: str) -> None:
    """Print a progress line that starts with the seconds since the start."""
    print(f"[{time.monotonic() - _began:6.1f} s] {text}", flush=True)


def _up(arguments: argparse.Namespace) -> int:
    stack = Stack(find_layout(), say)
    with stack.starting():
        pointer = pointer_of(main_model().profile)
        newest = newest_release(open_store(stack.layout.store), which=pointer)
        serving.check_port(stack)
        stack.up()
        serving.serve(stack, pointer, say)
        stack.await_tracking()
    if newest is None:
        say("no model is released yet; the gateway serves the first one by itself")
    else:
        _await_model(stack, newest)
    show_addresses(stack.layout)
    print(f"To try it, trigger {main_dag_id()} in the UI with the dataset {SAMPLE}")
    return EXIT_OK


def _await_model(stack: Stack, newest: ReleasePointer) -> None:
    try:
        serving.await_served(stack, newest.name, newest.version)
    except TunelineError as error:
        # The stack is up all the same, and the follower goes on trying.
        say(str(error))
    else:
        say(f"the gateway serves {newest.name} {newest.version}: {stack.layout.gateway_url}")


def _down(arguments: argparse.Namespace) -> int:
    stack = Stack(find_layout(), say)
    with stack.changing():
        stack.down()
    return EXIT_OK


def _status(arguments: argparse.Namespace) -> int:
    rows = Stack(find_layout(), say).status()
    for name, what in rows.items():
        print(f"{name:<14} {what}")
    if not rows:
        print("nothing is running; start it with `make up`")
    return EXIT_OK


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "up": _up,
    "down": _down,
    "demo": lambda given: demo(find_layout(), given.data, given.config, say),
    "demo-drift": lambda given: demo_drift(find_layout(), given.data, given.config, say),
    "review": lambda given: review(find_layout()),
    "status": _status,
}

if __name__ == "__main__":
    sys.exit(main())
