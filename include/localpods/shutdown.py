"""Ending everything: the server and all that its pods run."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from localpods.containers import load_runs
from localpods.jobs import is_concluded, job_condition
from localpods.objects import is_finished
from localpods.pod_status import fail, pod_status
from localpods.processes import is_alive
from localpods.state import StateDir, read_json

_TICK_S = 0.05
# A server has nothing to finish: it answers or waits for files.
_SERVER_LIMIT_S = 10.0
# Beyond the grace period: supervisors tidy up after SIGKILL.
_MARGIN_S = 5.0
# A supervisor that the server started last may take so long to show itself.
_LATE_S = 2.0
_MESSAGE = "Pod was terminated in response to imminent node shutdown."


def stop_server(state: StateDir) -> bool:
    """End the server of a state directory.

    Returns:
        Whether there was one.
    """
    server = read_json(state.server_file)
    if server is None or not is_alive(server["pid"], server["birth"]):
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(server["pid"], signal.SIGTERM)
    limit = time.monotonic() + _SERVER_LIMIT_S
    while is_alive(server["pid"], server["birth"]) and time.monotonic() < limit:
        time.sleep(_TICK_S)
    if is_alive(server["pid"], server["birth"]):
        # The server alone: its pods have a grace period of their own.
        with contextlib.suppress(ProcessLookupError):
            os.kill(server["pid"], signal.SIGKILL)
    return True


def stop_pods(state: StateDir, grace: float) -> int:
    """End all pods; their server must have ended before.

    They count as failed, as those of a node that is shut down, and unfinished jobs too, so that
    a later server does not start them again.

    Args:
        state: The state directory.
        grace: Seconds between SIGTERM and SIGKILL.

    Returns:
        The number of containers that ran.
    """
    unfinished = [pod for pod in state.load_pods() if not is_finished(pod)]
    runs_of_pods = [load_runs(state, pod) for pod in unfinished]
    runs = [run for some in runs_of_pods for run in some.values() if run.exit is None]
    for run in runs:
        # Also one that was not started: a supervisor that is on its way reads it.
        run.stop(grace, "shutdown")
    began = time.monotonic()
    while True:
        waited = time.monotonic() - began
        late = waited < _LATE_S
        left = [run for run in runs if run.exit is None]
        left = [run for run in left if run.launched or (late and run.may_launch)]
        if not left or waited > grace + _MARGIN_S:
            break
        time.sleep(_TICK_S)
        for run in left:
            run.poll()
    for run in left:
        run.kill()
    for pod, runs_of_pod in zip(unfinished, runs_of_pods, strict=True):
        if runs_of_pod:
            pod["status"] = pod_status(pod, runs_of_pod)
        pod["status"] |= fail("Terminated", _MESSAGE)
        state.save_pod(pod)
    for job in state.load_jobs():
        if not is_concluded(job):
            job["status"]["conditions"] = [job_condition("Failed", "NodeShutdown", _MESSAGE)]
            state.save_job(job)
    state.remove_temp()
    return sum(run.exit is not None for run in runs)
