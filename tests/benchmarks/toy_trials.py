"""Small trials for the tests of the harness."""

import os

from benchmarks.contest.trial import Trial


def squares(job):
    def work(items):
        with open(job["journal"], "a") as journal:
            journal.write(f"{job['name']} {job['seed']} {os.getpid()} {len(items)}\n")
        return [x * x for x in items]

    return Trial("1", list(range(30)), work, lambda out: {"right": float(out[-1] == 29 * 29)})


def cores(job):
    return Trial("1", [1], lambda _: os.sched_getaffinity(0), lambda out: {"cores": len(out)})


def broken(job):
    raise RuntimeError("the engine fell off")
