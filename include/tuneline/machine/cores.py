"""The number of threads that a CPU engine should take, and how busy the cores are now."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tuneline.errors import UserError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_threads(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Results in the order of the items; no more of them wait than there are cores."""
    cores = available_cores()
    if cores == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(cores) as pool:
        ahead: deque[Future[_Result]] = deque()
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > cores:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
# Ticks of the kernel are 10 ms, so that this sees shares of 4 %.
_WATCHED_SECONDS = 0.25


def available_cores() -> int:
    """Cores this process may use: its affinity, cut by the container's CPU quota."""
    cores = len(_usable())
    try:
        quota, period = _CGROUP_QUOTA.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    if quota == "max":
        return cores
    return max(1, min(cores, int(quota) // int(period)))


def configured_threads() -> int | None:
    """`$TUNELINE_THREADS`, None if it is not set."""
    configured = os.environ.get("TUNELINE_THREADS")
    if not configured:
        return None
    if not configured.isdigit() or int(configured) < 1:
        raise UserError(f"TUNELINE_THREADS is {configured!r}; set a positive number or unset it")
    return int(configured)


def default_threads() -> int:
    """`$TUNELINE_THREADS`, or all cores but one.

    One is left for whatever else runs: an engine whose threads outnumber the free cores
    loses a factor of ten, since its threads wait for each other at every layer.
    """
    return configured_threads() or max(1, available_cores() - 1)


def busy_cores() -> float:
    """Return how many of the cores this process may use are busy now, over a quarter second.

    The load average does not measure that: for minutes it remembers what has ended, such as the
    step before.
    """
    import psutil

    shares = psutil.cpu_percent(_WATCHED_SECONDS, percpu=True)
    return sum(shares[core] for core in _usable() if core < len(shares)) / 100


def _usable() -> Collection[int]:
    affinity = getattr(os, "sched_getaffinity", None)
    return affinity(0) if affinity else range(os.cpu_count() or 1)
