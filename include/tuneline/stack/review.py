"""`make review`: the pairs of the last run, blind, in this terminal."""

from __future__ import annotations

import json
import subprocess

from tuneline.errors import UserError
from tuneline.people.terminal import check_terminal
from tuneline.run import Run
from tuneline.stack.layout import Layout
from tuneline.store import open_store

COMMAND = "make review"


def review(layout: Layout) -> int:
    """Open the review of the last run that has answers to compare.

    Returns:
        The exit code of `tuneline review vote`.

    Raises:
        UserError: if there is no such run, or no terminal.
    """
    check_terminal()
    run = last_run(layout.store)
    print(f"the review of {run.uri}", flush=True)
    command = [str(layout.ml_bin / "tuneline"), "review", "vote", "--run", run.uri]
    return subprocess.run(command, check=False).returncode


def last_run(store_uri: str) -> Run:
    """Return the run that was made last among those whose hold-out was answered.

    Raises:
        UserError: if there is none.
    """
    store = open_store(store_uri)
    made = sorted(
        (json.loads(store.get_bytes(key))["created_at"], key.removesuffix("/run.json"))
        for key in store.keys("runs")
        if key.count("/") == 2 and key.endswith("/run.json")
    )
    for _, prefix in reversed(made):
        if store.exists(f"{prefix}/evaluation/holdout_performance/evidence.json"):
            return Run.open(store.uri_of(prefix))
    raise UserError(
        f"no run in {store_uri} has answers to compare; `make demo` makes one on sample data"
    )
