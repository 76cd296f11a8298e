"""Write a GGUF file tensor by tensor, so that memory stays bounded by the largest one."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tuneline.errors import RetryableError, UserError
from tuneline.models.gguf_layout import Array

# llama.cpp's names of the types this project writes.
WRITABLE_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written.

    Attributes:
        name: GGUF name.
        shape: In NumPy's order, rows first.
        type_name: GGML type, for example F16 or Q8_0.
        values: Produces the float32 values when their turn comes.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    values: Callable[[], Array]

    @property
    def elements(self) -> int:
        """Number of values."""
        return prod(self.shape)


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        tensor_bytes: Bytes of all tensors without padding.
        inexact: Values that differ once read back.
        max_error: Largest absolute difference between a value and what was stored.
    """

    tensor_bytes: int
    inexact: int
    max_error: float


def write_tensors(
    writer: Any, tensors: Sequence[PlannedTensor], out: Path, *, compare: bool = True
) -> Written:
    """Write metadata and tensors; the file appears whole or not at all.

    Args:
        writer: A `gguf.GGUFWriter` made without a path, its metadata added.
        tensors: In the order of the file.
        out: The file.
        compare: Read each tensor back in memory and count what rounding changed.

    Raises:
        UserError: A value does not fit the type.
        RetryableError: The disk is full.
    """
    import gguf

    types = {tensor.name: gguf.GGMLQuantizationType[tensor.type_name] for tensor in tensors}
    total = 0
    for tensor in tensors:
        block, size = gguf.GGML_QUANT_SIZES[types[tensor.name]]
        stored = tensor.elements // block * size
        total += stored
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), stored, raw_dtype=types[tensor.name]
        )
    inexact, worst = 0, 0.0
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    os.close(handle)
    staged = Path(name)
    try:
        writer.write_header_to_file(path=staged)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, data, values in _encoded(tensors, types):
            if compare:
                back = gguf.quants.dequantize(data, types[tensor.name]).reshape(values.shape)
                error = np.abs(back - values)
                inexact += int(np.count_nonzero(error))
                worst = max(worst, float(error.max(initial=0.0)))
            writer.write_tensor_data(data)
        writer.close()
        staged.chmod(0o644)
        staged.replace(out)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RetryableError(f"can't write {out}: {error.strerror}; free some space") from error
    finally:
        staged.unlink(missing_ok=True)
    return Written(tensor_bytes=total, inexact=inexact, max_error=worst)


def _encoded(
    tensors: Sequence[PlannedTensor], types: dict[str, Any]
) -> Iterable[tuple[PlannedTensor, Array, Array]]:
    import gguf

    for tensor in tensors:
        values = np.ascontiguousarray(tensor.values(), dtype=np.float32)
        if values.shape != tensor.shape:
            raise UserError(f"tensor {tensor.name} is {values.shape}, expected {tensor.shape}")
        # Float16 ends at 65,504; larger values would become infinite without a word.
        with np.errstate(over="ignore"):
            data = gguf.quants.quantize(values, types[tensor.name])
        if tensor.type_name == "F16" and not np.isfinite(data).all():
            raise UserError(
                f"tensor {tensor.name} holds values that float16 can't (or that are not finite); "
                "export with dtype bf16 or f32"
            )
        yield tensor, data, values
