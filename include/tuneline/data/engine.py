"""The engine that `data.engine` names."""

from __future__ import annotations

import os
from importlib.util import find_spec

from tuneline.config import DataConfig
from tuneline.machine.workers import HERE, Engine


def engine_of(config: DataConfig) -> Engine:
    """Return the engine of a configuration; see `tuneline.machine.spark.connect` for errors."""
    if config.engine == "local":
        return HERE
    from tuneline.machine.spark import connect

    return connect()


def reachable() -> bool:
    """True if this process can use Spark; Airflow's own can't, which checks gates."""
    return "SPARK_REMOTE" in os.environ and find_spec("pyspark") is not None
