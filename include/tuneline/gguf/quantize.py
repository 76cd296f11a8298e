"""Quantise a GGUF file with the reference code of the official `gguf` package.

Only the block types are supported (32 values a block): the K-types need rows divisible by 256,
which small models do not have, and the package has no quantiser for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuneline.errors import UserError
from tuneline.gguf.file import PlannedTensor, Written, write_tensors
from tuneline.models.gguf_import import Array

# Our names, with the GGML type and llama.cpp's number of the file type (llama.h, llama_ftype).
QUANTISATIONS = {
    "q8_0": ("Q8_0", 7),
    "q5_1": ("Q5_1", 9),
    "q5_0": ("Q5_0", 8),
    "q4_1": ("Q4_1", 3),
    "q4_0": ("Q4_0", 2),
}
_SOURCES = {"F32", "F16", "BF16"}
# The embedding and the head affect every token; llama.cpp keeps them at more bits too.
_KEPT_AT_8_BIT = {"token_embd.weight", "output.weight"}


def quantize(src_gguf: Path, dst_gguf: Path, type_name: str = "q8_0") -> Written:
    """Quantise the matrices of an unquantised GGUF model.

    Args:
        src_gguf: the model, f32, f16 or bf16.
        dst_gguf: the file to write; it appears whole or not at all.
        type_name: one of `QUANTISATIONS`.

    Raises:
        UserError: if the source is quantised already.
        RetryableError: if the disk is full.
    """
    import gguf

    ggml_type, file_type = QUANTISATIONS[type_name]
    reader = gguf.GGUFReader(src_gguf)
    tensors = list(_plan(reader, src_gguf, ggml_type))
    writer = gguf.GGUFWriter(None, reader.fields["general.architecture"].contents())
    _copy_metadata(reader, writer)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    return write_tensors(writer, tensors, dst_gguf)


def _plan(reader: Any, source: Path, ggml_type: str) -> Iterator[PlannedTensor]:
    import gguf

    for tensor in reader.tensors:
        stored = tensor.tensor_type.name
        if stored not in _SOURCES:
            raise UserError(
                f"{source}: {tensor.name} is {stored} already; quantise the unquantised export"
            )
        # The reader returns GGML's order, columns first.
        shape = tuple(int(size) for size in reversed(tensor.shape))
        wanted = stored
        if len(shape) == 2:
            wanted = "Q8_0" if tensor.name in _KEPT_AT_8_BIT else ggml_type
            # No block fits such rows.
            if shape[1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[wanted]][0]:
                wanted = "F16"
        yield PlannedTensor(tensor.name, shape, wanted, _values(tensor, shape))


def _values(tensor: Any, shape: tuple[int, ...]) -> Any:
    import gguf

    def read() -> Array:
        values: Array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        return values.reshape(shape)

    return read


def _copy_metadata(reader: Any, writer: Any) -> None:
    """Copy every key except those that the writer or the new type sets."""
    import gguf

    replaced = {"general.architecture", "general.file_type", "general.quantization_version"}
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in replaced:
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=inner)
