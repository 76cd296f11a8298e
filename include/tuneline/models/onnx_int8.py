"""Turn an ONNX network with 4-bit weights into one that multiplies 8-bit integers.

onnxruntime unpacks 4-bit weights to float32 and is no faster with them. Eight bits on both sides
are faster on every x86 core (twice on one with VNNI), and the same file comes of the same versions
of `onnx` and onnxruntime. Weights take 7 of the 8 bits: AVX2 adds up products of 8 bits in 16,
which overflow.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

# Part of the cache key; raise it if another network is made from the same file.
CONVERTER_VERSION = 1


def to_int8(source: Path, target: Path, scratch: Path) -> str:
    """Write a network with 8-bit weights, one scale for each column of a matrix.

    Its products with weights are `MatMulNBits` of 4 bits without zero points, as onnxruntime's
    contrib operators lay them out. Returns how it was made, in words.
    """
    import onnx
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            x, packed, scales = node.input
            values = [onnx.numpy_helper.to_array(weights.pop(name)) for name in (packed, scales)]
            matrix = _unpacked(*values, **_attributes(node))
            weights[packed] = onnx.numpy_helper.from_array(matrix, packed)
            plain = onnx.helper.make_node("MatMul", [x, packed], node.output, name=node.name)
            node.CopyFrom(plain)
    del graph.initializer[:]
    graph.initializer.extend(weights.values())
    full = scratch / "float32.onnx"
    onnx.save(model, full)
    # It warns that the embeddings are quantised already; they stay as they are.
    logging.disable(logging.WARNING)
    try:
        quantize_dynamic(
            full,
            target,
            op_types_to_quantize=["MatMul"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
    finally:
        logging.disable(logging.NOTSET)
    return (
        f"{target.name}: {source.name} unpacked to float32, then quantize_dynamic of onnxruntime "
        f"{onnxruntime.__version__} with onnx {onnx.__version__}"
    )


def _attributes(node: Any) -> dict[str, int]:
    return {entry.name: entry.i for entry in node.attribute if entry.name in ("K", "block_size")}


def _unpacked(packed: Any, scales: Any, *, K: int, block_size: int) -> Any:
    """Return the matrix (K x N) of weights packed as N x blocks x half a block, low half first."""
    halves = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1, block_size)
    values = (halves.astype(np.float32) - 8) * scales.reshape(len(packed), -1, 1)
    return np.ascontiguousarray(values.reshape(len(packed), -1)[:, :K].T)
