"""Write a GGUF file tensor by tensor, so that memory is bounded by the largest tensor."""

from __future__ import annotations

import errno
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tuneline.errors import RetryableError, UserError
from tuneline.models.gguf_import import Array


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written.

    Attributes:
        name: GGUF name.
        shape: shape in NumPy's order, rows first.
        type_name: GGML type, for example F16 or Q8_0.
        values: function that returns the float32 values.
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
    """A GGUF file that was written.

    Attributes:
        path: the file.
        bytes: its size, in bytes.
        types: number of tensors of each GGML type.
        parameters: number of values; tied weights count once.
        rounded_values: number of values that their type can't hold exactly; 0 is lossless.
    """

    path: Path
    bytes: int
    types: dict[str, int]
    parameters: int
    rounded_values: int


def write_tensors(writer: Any, tensors: Sequence[PlannedTensor], out: Path) -> Written:
    """Write metadata and tensors; the file appears whole or not at all.

    Args:
        writer: a `gguf.GGUFWriter` created without a path, its metadata added.
        tensors: the tensors in the order of the file.
        out: the file.

    Raises:
        UserError: if a value does not fit the type.
        RetryableError: if the disk is full.
    """
    import gguf

    types = {tensor.name: gguf.GGMLQuantizationType[tensor.type_name] for tensor in tensors}
    _announce(writer, tensors, types)
    rounded = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    os.close(handle)
    staged = Path(name)
    try:
        writer.write_header_to_file(path=staged)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, data, values in _encoded(tensors, types):
            back = gguf.quants.dequantize(data, types[tensor.name]).reshape(values.shape)
            rounded += int(np.count_nonzero(back != values))
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
    return Written(
        path=out,
        bytes=out.stat().st_size,
        types=dict(Counter(tensor.type_name for tensor in tensors)),
        parameters=sum(tensor.elements for tensor in tensors),
        rounded_values=rounded,
    )


def _announce(writer: Any, tensors: Sequence[PlannedTensor], types: dict[str, Any]) -> None:
    """Add the tensors' names, shapes and types to the header."""
    import gguf

    for tensor in tensors:
        kind = types[tensor.name]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        stored = tensor.elements // block * size
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), stored, raw_dtype=kind
        )


def _encoded(
    tensors: Sequence[PlannedTensor], types: dict[str, Any]
) -> Iterable[tuple[PlannedTensor, Array, Array]]:
    import gguf

    for tensor in tensors:
        values = np.ascontiguousarray(tensor.values(), dtype=np.float32)
        if values.shape != tensor.shape:
            raise UserError(f"tensor {tensor.name} is {values.shape}, expected {tensor.shape}")
        # Float16 ends at 65,504; larger values would silently become infinite.
        with np.errstate(over="ignore"):
            data = gguf.quants.quantize(values, types[tensor.name])
        if tensor.type_name == "F16" and not np.isfinite(data).all():
            raise UserError(
                f"tensor {tensor.name} holds values that float16 can't (or that are not finite); "
                "export with dtype bf16 or f32"
            )
        yield tensor, data, values
