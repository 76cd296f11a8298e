"""The engine that `data.engine` names."""

from __future__ import annotations

from tuneline.config import DataConfig
from tuneline.machine.workers import HERE, Engine


def engine_of(config: DataConfig) -> Engine:
    """Return the engine of a configuration; see `tuneline.machine.spark.connect` for errors."""
    if config.engine == "local":
        return HERE
    from tuneline.machine.spark import connect

    return connect()
