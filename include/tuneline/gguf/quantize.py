"""Quantise a GGUF file with the reference code of the official `gguf` package.

The block types only (32 values a block): the K-types need rows divisible by 256, which
small models do not have, and the package implements no quantiser for them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuneline.errors import UserError
from tuneline.gguf.file import PlannedTensor, write_tensors
from tuneline.models.gguf_layout import Array
from tuneline.store import sha256_file

# Our name → GGML type and llama.cpp's number of the file type (llama.h, enum llama_ftype).
QUANTISATIONS = {
    "q8_0": ("Q8_0", 7),
    "q5_1": ("Q5_1", 9),
    "q5_0": ("Q5_0", 8),
    "q4_1": ("Q4_1", 3),
    "q4_0": ("Q4_0", 2),
}
_SOURCES = {"F32", "F16", "BF16"}
# The embedding and the head decide every token; llama.cpp keeps them at more bits too.
_KEPT_AT_8_BIT = {"token_embd.weight", "output.weight"}


@dataclass(frozen=True)
class QuantizeReport:
    """What a quantisation wrote.

    Attributes:
        path: The new file.
        sha256: Of the file.
        bytes: Of the file.
        type_name: What was asked for.
        bits_per_weight: All tensor bytes × 8 over all values: norms, scales and the
            embedding's own type included.
        types: How many tensors have each type.
        fallbacks: Matrices whose rows no block fits, left at float16.
        max_error: Largest absolute change of a value against the source.
        source_sha256: Of the file it was made from.
        seconds: Wall-clock time.
    """

    path: Path
    sha256: str
    bytes: int
    type_name: str
    bits_per_weight: float
    types: dict[str, int]
    fallbacks: tuple[str, ...]
    max_error: float
    source_sha256: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {**asdict(self), "path": str(self.path), "fallbacks": list(self.fallbacks)}


def quantize(src_gguf: Path, dst_gguf: Path, type_name: str = "q8_0") -> QuantizeReport:
    """Quantise the matrices of an unquantised GGUF model.

    Args:
        src_gguf: f32, f16 or bf16.
        dst_gguf: The file to write; it appears whole or not at all.
        type_name: One of `QUANTISATIONS`.

    Raises:
        UserError: Unknown type, or the source is quantised already or no model.
        RetryableError: The disk is full.
    """
    import gguf

    started = time.monotonic()
    if type_name not in QUANTISATIONS:
        raise UserError(f"quantisation {type_name!r}: use one of {', '.join(QUANTISATIONS)}")
    ggml_type, file_type = QUANTISATIONS[type_name]
    reader = open_gguf(src_gguf)
    if reader.fields["general.type"].contents() != "model":
        raise UserError(f"{src_gguf} holds no model")
    fallbacks: list[str] = []
    tensors = list(_plan(reader, src_gguf, ggml_type, fallbacks))
    writer = gguf.GGUFWriter(None, reader.fields["general.architecture"].contents())
    _copy_metadata(reader, writer)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    written = write_tensors(writer, tensors, dst_gguf)
    return QuantizeReport(
        path=dst_gguf,
        sha256=sha256_file(dst_gguf),
        bytes=dst_gguf.stat().st_size,
        type_name=type_name,
        bits_per_weight=written.tensor_bytes * 8 / sum(t.elements for t in tensors),
        types=dict(Counter(tensor.type_name for tensor in tensors)),
        fallbacks=tuple(fallbacks),
        max_error=written.max_error,
        source_sha256=sha256_file(src_gguf),
        seconds=time.monotonic() - started,
    )


def open_gguf(path: Path) -> Any:
    """A `gguf.GGUFReader` on a file, memory-mapped.

    Raises:
        UserError: The file is missing or no GGUF file.
    """
    import gguf

    try:
        return gguf.GGUFReader(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} is no usable GGUF file: {error}") from None


def _plan(
    reader: Any, source: Path, ggml_type: str, fallbacks: list[str]
) -> Iterator[PlannedTensor]:
    import gguf

    for tensor in reader.tensors:
        stored = tensor.tensor_type.name
        if stored not in _SOURCES:
            raise UserError(
                f"{source}: {tensor.name} is {stored} already; quantise the unquantised export"
            )
        # The reader gives GGML's order, columns first.
        shape = tuple(int(size) for size in reversed(tensor.shape))
        wanted = stored
        if len(shape) == 2:
            wanted = "Q8_0" if tensor.name in _KEPT_AT_8_BIT else ggml_type
            if shape[1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[wanted]][0]:
                fallbacks.append(tensor.name)
                wanted = "F16"
        yield PlannedTensor(tensor.name, shape, wanted, _values(tensor, shape))


def _values(tensor: Any, shape: tuple[int, ...]) -> Any:
    import gguf

    def read() -> Array:
        values: Array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        return values.reshape(shape)

    return read


def _copy_metadata(reader: Any, writer: Any) -> None:
    """Copy every key but those that the writer or the new type sets itself."""
    import gguf

    set_anew = {"general.architecture", "general.file_type", "general.quantization_version"}
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in set_anew:
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=inner)
