"""Read safetensors one tensor at a time, memory-mapped, bfloat16 included.

NumPy has no bfloat16, so the library's NumPy reader refuses it; the format is a length, a
JSON header and raw bytes (https://huggingface.co/docs/safetensors), which are read directly.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tuneline.errors import UserError
from tuneline.models.gguf_layout import Array, to_float32

_NUMPY_TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "I8": np.int8,
    "U8": np.uint8,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    path: Path
    start: int

    def float32(self) -> NDArray[np.float32]:
        """Return its values; exact for float32, float16 and bfloat16.

        Raises:
            UserError: if it has another type, for example in a quantised checkpoint.
        """
        kind = _NUMPY_TYPES.get(self.dtype)
        if kind is None:
            raise UserError(f"{self.path}: {self.name} has type {self.dtype}, which is not read")
        raw: Array = np.memmap(self.path, kind, "r", offset=self.start, shape=self.shape or (1,))
        return to_float32(raw, self.dtype).reshape(self.shape)


def read_header(path: Path) -> Iterator[StoredTensor]:
    """Read the tensors of one safetensors file, in the order of their names.

    Raises:
        UserError: if the file is not a safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= size - 8:
            raise UserError(f"{path} is not a safetensors file, or it is cut short")
        try:
            header = json.loads(stream.read(length))
        except ValueError:
            raise UserError(f"{path} is not a safetensors file: its header is not JSON") from None
    for name in sorted(key for key in header if key != "__metadata__"):
        entry = header[name]
        start, end = entry["data_offsets"]
        if 8 + length + end > size:
            raise UserError(f"{path} is cut short: {name} ends past the end of the file")
        yield StoredTensor(name, tuple(entry["shape"]), entry["dtype"], path, 8 + length + start)
