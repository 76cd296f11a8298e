"""Types of fields that several sections of the gateway's configuration have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo


def _beside_file(path: Path, info: ValidationInfo) -> Path:
    base = (info.context or {}).get("base")
    return Path(base, path.expanduser()) if base else path.expanduser()


def _env_set(name: str) -> str:
    if not os.environ.get(name):
        raise ValueError(f"the environment variable {name} is not set")
    return name


# Relative paths mean "beside the configuration file", wherever the gateway is started from.
FilePath = Annotated[Path, AfterValidator(_beside_file)]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][\w.:@/+-]*$")]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
# Keys and other secrets stand in the environment; the file only names the variable.
EnvName = Annotated[str, AfterValidator(_env_set)]
