"""The number of threads that a CPU engine should take, and how busy the cores are now."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tuneline.errors import UserError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_threads(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Results in the order of the items; no more of them wait than there are cores.

    Args:
        work: takes an item; must not depend on the order.
    """
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
_STAT = Path("/proc/stat")
# Fields of a core's line in proc(5): the times when it waited, and all that add up to its time.
# Time as a guest counts as the user's already.
_WAITING, _ALL = slice(3, 5), slice(0, 8)
# Ticks of the kernel are 10 ms, so that this sees shares of 4 %.
_WATCHED_SECONDS = 0.25


def available_cores() -> int:
    """Cores this process may use: its affinity, cut by the container's CPU quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    try:
        quota, period = _CGROUP_QUOTA.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    if quota == "max":
        return cores
    return max(1, min(cores, int(quota) // int(period)))


def configured_threads() -> int | None:
    """`$TUNELINE_THREADS`, None if it is not set.

    Raises:
        UserError: if it is no positive number.
    """
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


def busy_cores(sleep: Callable[[float], None] = time.sleep) -> float:
    """Return how many of the cores this process may use are at work now, over a quarter second.

    The load average is no measure of it: for minutes it remembers what has ended, such as the
    step before. It stands in where the system has no `/proc/stat`.
    """
    try:
        before = _core_times()
        sleep(_WATCHED_SECONDS)
        after = _core_times()
    except (OSError, ValueError):
        return os.getloadavg()[0]
    busy = 0.0
    for core in before.keys() & after.keys():
        passed = [new - old for old, new in zip(before[core], after[core], strict=True)]
        total = sum(passed[_ALL])
        busy += 1 - sum(passed[_WAITING]) / total if total > 0 else 0.0
    return busy


def _core_times() -> dict[int, list[int]]:
    """Return the times of each core that this process may use, in ticks."""
    affinity = getattr(os, "sched_getaffinity", None)
    usable = affinity(0) if affinity else range(os.cpu_count() or 1)
    lines = [line.split() for line in _STAT.read_text(encoding="ascii").splitlines()]
    named = {name: fields for name, *fields in lines}
    found = {core: list(map(int, named[f"cpu{core}"])) for core in usable if f"cpu{core}" in named}
    if not found:
        raise ValueError(f"{_STAT} names none of the cores {sorted(usable)}")
    return found
