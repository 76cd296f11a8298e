"""Read safetensors one tensor at a time, memory-mapped, as float32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneline.errors import UserError


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file."""

    name: str
    shape: tuple[int, ...]
    path: Path

    def float32(self) -> NDArray[np.float32]:
        """Return its values; exact for float32, float16 and bfloat16.

        Raises:
            UserError: if it has another type, for example in a quantised checkpoint.
        """
        import torch

        with _open(self.path) as file:
            stored = file.get_tensor(self.name)
        if stored.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise UserError(
                f"{self.path}: {self.name} is {stored.dtype}, which can't be exported to GGUF; "
                "save the model in float16, bfloat16 or float32 (a quantised checkpoint must be "
                "dequantised first)"
            )
        values: NDArray[np.float32] = stored.float().numpy()
        return values


def read_header(path: Path) -> Iterator[StoredTensor]:
    """Read the tensors of one safetensors file, in the order of their names.

    Raises:
        UserError: if the file is not a safetensors file.
    """
    with _open(path) as file:
        for name in sorted(file.keys()):
            yield StoredTensor(name, tuple(file.get_slice(name).get_shape()), path)


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        # NumPy has no bfloat16, so torch reads it.
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file, or it is cut short ({error})") from None
