"""Convert a GGUF file of a Llama-type model to a Hugging Face directory, without torch.

The pre-tokenizer is set from `tokenizer.ggml.pre`; plain byte level would not split digits as
llama.cpp does and would give other token ids.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneline.errors import UserError

Array = NDArray[Any]

TOP_LEVEL = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
PER_BLOCK = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_BLOCK_TO_HF = {gguf: hf for hf, gguf in PER_BLOCK.items()}
_TOP_TO_HF = {gguf: hf for hf, gguf in TOP_LEVEL.items()}
_GGUF_BLOCK = re.compile(r"blk\.(\d+)\.([a-z_]+)\.(weight|bias)")


def to_hf_name(name: str) -> str:
    """Return the Hugging Face name of a GGUF tensor."""
    if match := _GGUF_BLOCK.fullmatch(name):
        block, module, kind = match.groups()
        if module in _BLOCK_TO_HF:
            return f"model.layers.{block}.{_BLOCK_TO_HF[module]}.{kind}"
    module, _, kind = name.rpartition(".")
    if module in _TOP_TO_HF:
        return f"{_TOP_TO_HF[module]}.{kind}"
    raise UserError(f"GGUF tensor {name!r} does not belong to a Llama-type model")


def interleave_heads(rows: Array, heads: int) -> Array:
    """Reorder a query or key projection from Hugging Face's rotary layout to llama.cpp's.

    `rows` has the shape (heads × head_dim, …); `heads` are the query heads for q, the key-value
    heads for k.
    """
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def split_heads(rows: Array, heads: int) -> Array:
    """Undo `interleave_heads`."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


# Part of the cache key; raise it if the directory written from the same file changes.
IMPORTER_VERSION = 1

# llama.h: LLAMA_TOKEN_TYPE_CONTROL.
_CONTROL = 3


@dataclass(frozen=True)
class GgufFacts:
    """Facts that the file states about the model."""

    name: str
    license: str
    quantisation: str


def gguf_to_directory(path: Path, directory: Path) -> GgufFacts:
    """Write config.json, safetensors (float16), tokenizer and chat template."""
    import gguf

    reader = gguf.GGUFReader(path)
    fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    if fields.get("general.architecture") != "llama":
        raise UserError(
            f"{path.name} holds a {fields.get('general.architecture')!r} model; "
            "only Llama-type GGUF files can be turned into a base model; use the directory of "
            "safetensors that it was made from"
        )
    config = _config(fields, tied="output.weight" not in {t.name for t in reader.tensors})
    _write_json(directory / "config.json", config)
    _write_json(
        directory / "generation_config.json",
        {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    _write_tokenizer(fields, config, directory)
    _write_weights(reader, config, directory / "model.safetensors")
    types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    return GgufFacts(
        name=str(fields.get("general.name", path.stem)),
        license=str(fields.get("general.license", "")),
        quantisation=types.most_common(1)[0][0],
    )


def _config(fields: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    heads = int(fields["llama.attention.head_count"])
    hidden = int(fields["llama.embedding_length"])
    if any(name.startswith("llama.rope.scaling") for name in fields):
        raise UserError("GGUF files with scaled rotary positions can't be turned into a base model")
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": int(fields["tokenizer.ggml.bos_token_id"]),
        "dtype": "float16",
        "eos_token_id": int(fields["tokenizer.ggml.eos_token_id"]),
        "head_dim": int(fields.get("llama.rope.dimension_count", hidden // heads)),
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": int(fields["llama.feed_forward_length"]),
        "max_position_embeddings": int(fields["llama.context_length"]),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": int(fields["llama.block_count"]),
        "num_key_value_heads": int(fields.get("llama.attention.head_count_kv", heads)),
        "pad_token_id": int(
            fields.get("tokenizer.ggml.padding_token_id", fields["tokenizer.ggml.eos_token_id"])
        ),
        # Stored as float32 in the file, which holds seven digits.
        "rms_norm_eps": float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.7g}"),
        # Both spellings: transformers 5 reads the first, 4 and other engines the second.
        "rope_parameters": {
            "rope_theta": float(fields.get("llama.rope.freq_base", 10000.0)),
            "rope_type": "default",
        },
        "rope_theta": float(fields.get("llama.rope.freq_base", 10000.0)),
        "tie_word_embeddings": tied,
        "use_cache": True,
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
    }


def _write_tokenizer(fields: Mapping[str, Any], config: Mapping[str, Any], target: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    if fields.get("tokenizer.ggml.model") != "gpt2" or fields.get("tokenizer.ggml.pre") != "smollm":
        raise UserError(
            f"GGUF tokenizer {fields.get('tokenizer.ggml.model')!r} with pre-tokenizer "
            f"{fields.get('tokenizer.ggml.pre')!r} is not supported; use the model's Hugging Face "
            "directory instead"
        )
    if not fields.get("tokenizer.chat_template"):
        raise UserError("the GGUF file has no chat template; use the model's Hugging Face files")
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(line.split(" ", 1)) for line in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
            if kind == _CONTROL
        ]
    )
    tokenizer.save(str(target / "tokenizer.json"))
    special = {
        "bos_token": tokens[config["bos_token_id"]],
        "eos_token": tokens[config["eos_token_id"]],
        "pad_token": tokens[config["pad_token_id"]],
    }
    if "tokenizer.ggml.unknown_token_id" in fields:
        special["unk_token"] = tokens[int(fields["tokenizer.ggml.unknown_token_id"])]
    _write_json(
        target / "tokenizer_config.json",
        {
            **special,
            "clean_up_tokenization_spaces": False,
            "model_max_length": config["max_position_embeddings"],
            # This class uses tokenizer.json unchanged; model-specific ones rebuild it.
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    template = str(fields["tokenizer.chat_template"])
    (target / "chat_template.jinja").write_text(template, encoding="utf-8")


def _write_weights(reader: Any, config: Mapping[str, Any], target: Path) -> None:
    from safetensors.numpy import save_file

    import gguf

    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    weights: dict[str, NDArray[np.float16]] = {}
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            raise UserError("GGUF files with rotary factors can't be turned into a base model")
        name = to_hf_name(tensor.name)
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        module = name.split(".")[-2]
        if module in heads:
            values = split_heads(values, heads[module])
        with np.errstate(over="ignore"):
            half = np.ascontiguousarray(values.astype(np.float16))
        if not np.isfinite(half).all():
            raise UserError(f"{tensor.name} holds values that float16 can't; use another base")
        weights[name] = half
    save_file(weights, target, metadata={"format": "pt"})


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
