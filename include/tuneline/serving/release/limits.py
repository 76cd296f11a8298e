"""The limits that a release is served with: those that it was measured with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tuneline.artifacts.deployment import EngineIdentity
from tuneline.machine.cores import available_cores, configured_threads
from tuneline.serving.engines.engine_server import ServeRequest

# Of a release that states no limits of its engine.
DEFAULT_PARALLEL, DEFAULT_CONTEXT = 2, 2048


@dataclass(frozen=True)
class ServedLimits:
    """The sizes that an engine's server is started with.

    Attributes:
        parallel: requests served at once.
        context_tokens: context of one request, in tokens.
        threads: CPU threads; None leaves them to the machine.
    """

    parallel: int
    context_tokens: int
    threads: int | None = None

    @classmethod
    def of(cls, request: ServeRequest) -> ServedLimits:
        """Return the limits that a server was started with."""
        return cls(request.parallel, request.context_tokens, request.threads)

    def as_stated(self) -> dict[str, int | None]:
        """Return the limits as an engine's identity states them."""
        return {
            "max_batch_size": self.parallel,
            "max_total_tokens": self.context_tokens,
            "threads": self.threads,
        }


def served_limits(identity: EngineIdentity) -> ServedLimits:
    """Return the limits that a release of an engine is served with.

    What its server was started with counts; a built engine may bear more than that.
    """
    return _limits(identity.served or identity.limits)


def _limits(stated: Mapping[str, Any]) -> ServedLimits:
    return ServedLimits(
        int(stated.get("max_batch_size") or DEFAULT_PARALLEL),
        int(stated.get("max_total_tokens") or DEFAULT_CONTEXT),
        int(stated["threads"]) if stated.get("threads") else None,
    )


def largest(limits: Iterable[ServedLimits]) -> ServedLimits:
    """Return limits that are enough for several releases on one engine."""
    each = list(limits)
    threads = [limit.threads for limit in each if limit.threads is not None]
    return ServedLimits(
        max(limit.parallel for limit in each),
        max(limit.context_tokens for limit in each),
        max(threads, default=None),
    )


def threads_here(measured: int | None) -> int | None:
    """Return the threads of a server on this machine.

    Args:
        measured: the threads that a release was measured with.

    Returns:
        `$TUNELINE_THREADS`, or the measured threads, but no more than there are cores; None if
        neither is known.
    """
    configured = configured_threads()
    if configured is not None or measured is None:
        return configured
    return min(measured, available_cores())
