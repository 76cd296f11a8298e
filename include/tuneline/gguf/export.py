"""Export a model or a LoRA adapter to GGUF with the official `gguf` writer, and quantise it.

Some mistakes in an export go unnoticed and are therefore handled and tested: the row order of
the query and key projections (and of `lora_B` on them), the rotary base (transformers 5 keeps it in
`rope_parameters`), the 1 that Gemma adds to the weights of its norms, the pre-tokenizer's name, the
type of special tokens, and norms, which must stay float32. `architectures` lists what differs. A
test compares the engine's logits and greedy text with transformers in float32. Files are written
tensor by tensor, so that memory is bounded by the largest one.

Only the block types of quantisation are supported (32 values a block), by the reference code of the
`gguf` package: the K-types need rows divisible by 256, which small models do not have, and the
package has no quantiser for them.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneline.errors import RetryableError, UserError
from tuneline.gguf.architectures import Settings, read_settings
from tuneline.gguf.tokenizer import read_tokenizer
from tuneline.models.base_model import read_json, read_license, weight_files
from tuneline.models.gguf_import import Array, interleave_heads

# Our names, with the GGML type and llama.cpp's number of the file type (llama.h, llama_ftype).
DTYPES = {"f32": ("F32", 0), "f16": ("F16", 1), "bf16": ("BF16", 32)}


def export_gguf(model_dir: Path, out: Path, dtype: str = "f16") -> Written:
    """Export a model directory to one GGUF file, tensor by tensor.

    Args:
        dtype: type of the matrices, one of `DTYPES`; norms and biases are float32.

    Raises:
        UserError: if the model can't be exported faithfully.
        RetryableError: if the disk is full.
    """
    import gguf

    config = read_json(model_dir / "config.json")
    settings = read_settings(config, model_dir)
    name = str(config.get("_name_or_path") or model_dir.name)
    tokenizer = read_tokenizer(model_dir, settings.integer("vocab_size"), name)
    ggml_type, file_type = DTYPES[dtype]
    tensors = list(_exported(model_dir, settings, ggml_type))

    writer = gguf.GGUFWriter(None, settings.family.gguf)
    writer.add_type("model")
    writer.add_name(tokenizer.pop("name"))
    license_id, _ = read_license(model_dir, config)
    if license_id:
        writer.add_license(license_id)
    write_hyperparameters(writer, settings)
    writer.add_file_type(file_type)
    for key, value in tokenizer.items():
        getattr(writer, f"add_{key}")(value)
    return write_tensors(writer, tensors, out)


def rotated_heads(settings: Settings) -> dict[str, int]:
    """Return the projections whose rows llama.cpp reorders, with their number of heads."""
    heads = {"q_proj": settings.heads, "k_proj": settings.kv_heads}
    return {name: heads[name] for name in settings.family.rotated}


def _exported(model_dir: Path, settings: Settings, type_name: str) -> Iterator[PlannedTensor]:
    heads, name_of = rotated_heads(settings), tensor_names(settings)
    for name, divisors in settings.positions.divisors.items():
        yield PlannedTensor(name, divisors.shape, "F32", partial(np.asarray, divisors))
    for path in weight_files(model_dir):
        for stored in read_header(path):
            if stored.name.endswith(".rotary_emb.inv_freq"):
                continue  # derived from the configuration; old checkpoints store it
            if stored.name == "lm_head.weight" and settings.values.get("tie_word_embeddings"):
                continue
            module = stored.name.split(".")[-2]
            # Norms and biases are vectors, and llama.cpp wants those in float32.
            kind = type_name if len(stored.shape) == 2 else "F32"
            offset = settings.family.norm_offset if module.endswith("norm") else 0.0
            read = partial(_float32, stored, heads.get(module), offset)
            yield PlannedTensor(name_of(stored.name), stored.shape, kind, read)


def _float32(stored: StoredTensor, heads: int | None, offset: float = 0.0) -> Array:
    values = stored.float32()
    if offset:
        values = values + values.dtype.type(offset)
    return values if heads is None else interleave_heads(values, heads)


_LORA_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


def export_lora_gguf(adapter_dir: Path, base_dir: Path, out: Path) -> Written:
    """Export an adapter that `train` wrote; DoRA is out of llama.cpp's reach.

    Its values are float32, since an adapter is small.

    Raises:
        UserError: if it is on another layer than an attention or MLP projection.
    """
    import gguf

    settings = read_json(adapter_dir / "adapter_config.json")
    base = read_settings(read_json(base_dir / "config.json"), base_dir)
    heads, name_of = rotated_heads(base), tensor_names(base)
    tensors = [
        _adapter_tensor(stored, heads, name_of, adapter_dir)
        for stored in read_header(adapter_dir / "adapter_model.safetensors")
    ]

    writer = gguf.GGUFWriter(None, base.family.gguf)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", effective_alpha(settings))
    return write_tensors(writer, tensors, out)


def effective_alpha(settings: Mapping[str, Any]) -> float:
    """Return the alpha that gives PEFT's scale when llama.cpp divides it by the rank.

    PEFT scales by alpha / r, or by alpha / √r for rank-stabilised LoRA (arXiv:2312.03732).
    """
    alpha, rank = float(settings["lora_alpha"]), int(settings["r"])
    return float(alpha * rank**0.5) if settings.get("use_rslora") else alpha


def _adapter_tensor(
    stored: StoredTensor, heads: Mapping[str, int], name_of: Callable[[str], str], where: Path
) -> PlannedTensor:
    match = _LORA_NAME.fullmatch(stored.name)
    base = name_of(f"{match.group(1)}.weight") if match else ""
    if match is None or not base.startswith("blk."):
        raise UserError(
            f"{where}: {stored.name} is not a LoRA of an attention or MLP projection; merge the "
            "adapter into its base and export that"
        )
    module, side = match.groups()
    count = heads.get(module.rsplit(".", 1)[-1]) if side == "B" else None
    name = f"{base}.lora_{side.lower()}"
    return PlannedTensor(name, stored.shape, "F32", partial(_float32, stored, count))


# As for `DTYPES`.
QUANTISATIONS = {
    "q8_0": ("Q8_0", 7),
    "q5_1": ("Q5_1", 9),
    "q5_0": ("Q5_0", 8),
    "q4_1": ("Q4_1", 3),
    "q4_0": ("Q4_0", 2),
}
# The embedding and the head affect every token; llama.cpp keeps them at more bits too.
_KEPT_AT_8_BIT = {"token_embd.weight", "output.weight"}


def quantize(src_gguf: Path, dst_gguf: Path, type_name: str = "q8_0") -> Written:
    """Quantise the matrices of an unquantised GGUF model.

    Args:
        type_name: one of `QUANTISATIONS`.

    Raises:
        UserError: if the source is quantised already.
        RetryableError: if the disk is full.
    """
    import gguf

    ggml_type, file_type = QUANTISATIONS[type_name]
    reader = gguf.GGUFReader(src_gguf)
    tensors = list(_quantised(reader, src_gguf, ggml_type))
    writer = gguf.GGUFWriter(None, reader.fields["general.architecture"].contents())
    _copy_metadata(reader, writer)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    return write_tensors(writer, tensors, dst_gguf)


def _quantised(reader: Any, source: Path, ggml_type: str) -> Iterator[PlannedTensor]:
    import gguf

    for tensor in reader.tensors:
        stored = tensor.tensor_type.name
        if stored not in dict(DTYPES.values()):
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
        yield PlannedTensor(tensor.name, shape, wanted, partial(_dequantised, tensor, shape))


def _dequantised(tensor: Any, shape: tuple[int, ...]) -> Array:
    import gguf

    values: Array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return values.reshape(shape)


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


def write_hyperparameters(writer: Any, settings: Settings) -> None:
    """Add the model's settings to a `gguf.GGUFWriter`."""
    import gguf

    writer.add_context_length(settings.trained_context)
    writer.add_embedding_length(settings.integer("hidden_size"))
    writer.add_block_count(settings.integer("num_hidden_layers"))
    writer.add_feed_forward_length(settings.integer("intermediate_size"))
    writer.add_head_count(settings.heads)
    writer.add_head_count_kv(settings.kv_heads)
    writer.add_key_length(settings.head_dim)
    writer.add_value_length(settings.head_dim)
    writer.add_layer_norm_rms_eps(float(settings.values["rms_norm_eps"]))
    writer.add_vocab_size(settings.integer("vocab_size"))
    for name, method in settings.family.extra_keys.items():
        getattr(writer, method)(float(settings.values[name]))
    if settings.family.windows == "alternating":
        writer.add_sliding_window(settings.window)
    positions = settings.positions
    writer.add_rope_dimension_count(positions.dims)
    writer.add_rope_freq_base(positions.theta)
    if positions.local_theta is not None:
        writer.add_rope_freq_base_swa(positions.local_theta)
    if positions.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(positions.factor)
    if positions.original is not None:
        writer.add_rope_scaling_orig_ctx_len(positions.original)
        writer.add_rope_scaling_attn_factors(positions.attention_factor)


def tensor_names(settings: Settings) -> Callable[[str], str]:
    """Return the function that gives a tensor of transformers its name in GGUF, or refuses it."""
    import gguf

    family = settings.family.gguf
    architecture = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    known = gguf.get_tensor_name_map(architecture, settings.integer("num_hidden_layers"))

    def name_of(name: str) -> str:
        found: str | None = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UserError(
                f"tensor {name!r} has no place in a GGUF file of the architecture {family}; "
                "export this model with an engine that reads Hugging Face checkpoints"
            )
        return found

    return name_of


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written: its shape is NumPy's, rows first, its values are float32."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    values: Callable[[], Array]


@dataclass(frozen=True)
class Written:
    """A GGUF file that was written.

    Attributes:
        rounded_values: number of values that their type can't hold exactly; 0 is lossless.
    """

    path: Path
    bytes: int
    rounded_values: int


def write_tensors(writer: Any, tensors: Sequence[PlannedTensor], out: Path) -> Written:
    """Write metadata and tensors; the file appears whole or not at all.

    Args:
        writer: a `gguf.GGUFWriter` created without a path, its metadata added.

    Raises:
        UserError: if a value does not fit the type.
        RetryableError: if the disk is full.
    """
    import gguf

    types = [gguf.GGMLQuantizationType[tensor.type_name] for tensor in tensors]
    for tensor, kind in zip(tensors, types, strict=True):
        block, size = gguf.GGML_QUANT_SIZES[kind]
        stored = prod(tensor.shape) // block * size
        float32 = np.dtype(np.float32)
        writer.add_tensor_info(tensor.name, tensor.shape, float32, stored, raw_dtype=kind)
    rounded = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    os.close(handle)
    staged = Path(name)
    try:
        writer.write_header_to_file(path=staged)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, kind in zip(tensors, types, strict=True):
            values, data = _encoded(tensor, kind)
            back = gguf.quants.dequantize(data, kind).reshape(values.shape)
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
    return Written(path=out, bytes=out.stat().st_size, rounded_values=rounded)


def _encoded(tensor: PlannedTensor, kind: Any) -> tuple[Array, Array]:
    import gguf

    values = np.ascontiguousarray(tensor.values(), dtype=np.float32)
    if values.shape != tensor.shape:
        raise UserError(f"tensor {tensor.name} is {values.shape}, expected {tensor.shape}")
    # Float16 ends at 65,504; larger values would silently become infinite.
    with np.errstate(over="ignore"):
        data = gguf.quants.quantize(values, kind)
    if tensor.type_name == "F16" and not np.isfinite(data).all():
        raise UserError(
            f"tensor {tensor.name} holds values that float16 can't (or that are not finite); "
            "export with dtype bf16 or f32"
        )
    return values, data


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file."""

    name: str
    shape: tuple[int, ...]
    path: Path

    def float32(self) -> NDArray[np.float32]:
        """Return its values, exactly.

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
