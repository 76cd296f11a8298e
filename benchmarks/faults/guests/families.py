"""Families: one for each text template of TRL, with a tokenizer and a small random model.

TRL stores the chat templates that published models ship. The special tokens are read off each
template; what no template states (end tokens, tied heads, the architecture) stands in the table.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import files
from pathlib import Path
from typing import Any

from benchmarks.faults.guests.shapes import SHAPES

# Published tokenizers hold these tags as single tokens too; others (<tools>, <name>) are text.
_TAGS = (
    "think tool_call tool_response arg_key arg_value start_of_turn end_of_turn start_of_image sop"
)
_MARKERS = re.compile(
    r"<\|[^|<>\s']+\|?>|<[^|<>\s'/]+\|>|<｜[^｜<>']+｜>|\[/?[A-Z_]{3,}\]|\[gMASK\]|</?(?:"
    + "|".join(_TAGS.split())
    + ")>"
)
# How Qwen's and Llama 3's tokenizers split: a run of line ends is a piece of its own.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_VOCABULARY = 4000
_PAD = "<pad>"


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: the template's name in TRL.
        architecture: the prefix of its classes in transformers.
        end: the token that ends an answer.
        stops: tokens at which generation stops besides.
        eos: the tokenizer's own end token, where that is another.
        bos: the token at the beginning, if there is one.
        tied: whether the head is the embedding.
        system: whether the template takes a system turn.
        tools: whether it renders declared tools, calls and results.
    """

    name: str
    architecture: str
    end: str
    stops: tuple[str, ...] = ()
    eos: str | None = None
    bos: str | None = None
    tied: bool = False
    system: bool = True
    tools: bool = True

    @property
    def template(self) -> str:
        """The text of the chat template."""
        return _template_path(self.name).read_text(encoding="utf-8")

    @property
    def special_tokens(self) -> list[str]:
        """The tokens that the tokenizer holds as single ids, those of the template first."""
        named = [self.end, *self.stops, self.eos or self.end, self.bos or self.end, _PAD]
        return list(dict.fromkeys([*_MARKERS.findall(self.template), *named]))


_GEMMA = {"end": "<end_of_turn>", "eos": "<eos>", "bos": "<bos>", "tied": True}
_GEMMA4 = {"end": "<turn|>", "eos": "<eos>", "bos": "<bos>", "tied": True}
_CHATML = {"end": "<|im_end|>", "stops": ("<|endoftext|>",)}
_LFM2 = {"end": "<|im_end|>", "bos": "<|startoftext|>", "tied": True}
_LLAMA3 = {"end": "<|eot_id|>", "bos": "<|begin_of_text|>"}
_PHI3 = {"end": "<|end|>", "eos": "<|endoftext|>", "bos": "<s>", "tools": False}
_COHERE = {"end": "<|END_OF_TURN_TOKEN|>", "bos": "<BOS_TOKEN>", "tied": True, "tools": False}
_DEEPSEEK = {"end": "<｜end▁of▁sentence｜>", "bos": "<｜begin▁of▁sentence｜>"}
_TABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere": ("Cohere", _COHERE),
    "cohere2": ("Cohere2", _COHERE),
    "deepseek_r1_distill": ("Qwen2", {**_DEEPSEEK, "tools": False}),
    "deepseekv3": ("DeepseekV3", {**_DEEPSEEK, "tools": False}),  # calls, none declared
    "gemma": ("Gemma2", {**_GEMMA, "system": False, "tools": False}),
    "gemma3": ("Gemma3", {**_GEMMA, "tools": False}),
    "gemma4": ("Gemma4", _GEMMA4),
    "gemma4_v2": ("Gemma4", _GEMMA4),
    "gemma4_v3": ("Gemma4", _GEMMA4),
    "gemma4_v4": ("Gemma4", _GEMMA4),
    "gemma4_v5": ("Gemma4", _GEMMA4),
    "glm4moe": (
        "Glm4Moe",
        {"end": "<|user|>", "stops": ("<|observation|>",), "eos": "<|endoftext|>"},
    ),
    "gptoss": ("GptOss", {"end": "<|return|>", "stops": ("<|call|>",), "bos": "<|startoftext|>"}),
    "lfm2": ("Lfm2", {**_LFM2, "tools": False}),
    "lfm2_2_5": ("Lfm2", _LFM2),
    "lfm2_2_5_v2": ("Lfm2", _LFM2),
    "lfm2_v2": ("Lfm2", _LFM2),
    "llama3": ("Llama", {**_LLAMA3, "tools": False}),
    "llama3_1": ("Llama", {**_LLAMA3, "stops": ("<|eom_id|>", "<|end_of_text|>")}),
    "llama3_2": ("Llama", {**_LLAMA3, "tied": True}),
    "muse_glimmer": ("Llama", {"end": "<|eot|>", "bos": "<|begin_of_text|>"}),
    "nemotron_3_5_lightning": ("NemotronH", _CHATML),
    "nemotron_3_nano": ("NemotronH", _CHATML),
    "nemotron_3_super": ("NemotronH", _CHATML),
    "nemotron_3_ultra": ("NemotronH", _CHATML),
    "phi3": ("Phi3", _PHI3),
    "phi3_5": ("Phi3", _PHI3),
    "qwen2_5": ("Qwen2", {**_CHATML, "tied": True}),
    "qwen3": ("Qwen3", {**_CHATML, "tied": True}),
    "qwen3_5_nothink": ("Qwen3_5", {**_CHATML, "tied": True}),
    "qwen3_5_think": ("Qwen3_5", _CHATML),
    "qwen3_6": ("Qwen3_5", _CHATML),
    "qwen3_8": ("Qwen3_5", _CHATML),
    "qwen3_instruct_2507": ("Qwen3", {**_CHATML, "tied": True}),
}
FAMILIES = {
    name: Family(name, architecture, **facts) for name, (architecture, facts) in _TABLE.items()
}


@cache
def _template_path(name: str) -> Path:
    """Return the place of a template in the installed TRL, which need not be imported for it."""
    wanted = f"chat_templates/{name}.jinja"
    found = [f for f in files("trl") or () if f.as_posix().endswith(wanted)]
    if not found:
        raise FileNotFoundError(f"the installed TRL has no {wanted}")
    return Path(str(found[0].locate()))


def make_tokenizer(family: Family) -> Any:
    """Train a byte-level BPE tokenizer on the guests' texts, with the family's special tokens."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(_trained())
    pairs = {"think", "tool_call", "tool_response", "arg_key", "arg_value"}
    for token in family.special_tokens:
        plain = token.strip("</>") in pairs  # published tokenizers don't skip these in decoding
        tokenizer.add_tokens([AddedToken(token, special=not plain, normalized=False)])
    kind: Any = PreTrainedTokenizerFast
    fast = kind(
        tokenizer_object=tokenizer,
        eos_token=family.eos or family.end,
        bos_token=family.bos,
        pad_token=_PAD,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = family.template
    return fast


@cache
def _trained() -> str:
    """Train the tokenizer that all families share; return it as JSON."""
    from tokenizers import Regex, Tokenizer, decoders, models, trainers
    from tokenizers import pre_tokenizers as pre

    texts = [
        str(turn["content"])
        for name, shape in SHAPES.items()
        for record in shape.guest(name, seed=0, count=60).rows
        for turn in record["messages"]
    ]
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre.Sequence([pre.Split(Regex(_SPLIT), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 16384,
}
# What an architecture needs besides, so that it stays small.
_OWN: dict[str, dict[str, Any]] = {
    "DeepseekV3": {
        "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8, "v_head_dim": 8, "head_dim": 8, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 16,
        "first_k_dense_replace": 1, "n_shared_experts": 1,
    },
    "Glm4Moe": {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "first_k_dense_replace": 1, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
    },
    "GptOss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 128},
    "Gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 128},
    "Gemma3": {"query_pre_attn_scalar": 8, "sliding_window": 128},
    "Gemma4": {
        "global_head_dim": 8, "sliding_window": 128, "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 1,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "Lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "NemotronH": {
        "layers_block_type": ["attention", "moe"], "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16,
        "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1,
    },
    "Phi3": {"sliding_window": None},
    "Qwen3_5": {
        "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
        "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
}  # fmt: skip
# Text parts of models that see too have a configuration of their own.
_CONFIGS = {"Gemma3": "Gemma3Text", "Gemma4": "Gemma4Text", "Qwen3_5": "Qwen3_5Text"}


def write_base(family: Family, folder: Path, *, weights: bool = True) -> Path:
    """Write a base model's directory.

    Args:
        family: one of FAMILIES.
        folder: where to; it is made.
        weights: random weights of the family's architecture, some hundred thousand; without them a
            file of weights that nothing can load, enough for steps that need a tokenizer.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(family)
    tokenizer.save_pretrained(folder)
    stops = tokenizer.convert_tokens_to_ids([family.end, *family.stops, tokenizer.eos_token])
    ends = sorted(set(stops))
    config = {
        **_SIZES,
        **_OWN.get(family.architecture, {}),
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "tie_word_embeddings": family.tied,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": ends,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if weights:
        _save_model(family.architecture, config, folder)
    else:
        from numpy import zeros
        from safetensors.numpy import save

        config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_bytes(save({"weight": zeros((2, 2), dtype="float32")}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nRandom weights.\n")
    return folder


def _save_model(architecture: str, config: dict[str, Any], folder: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    kind = getattr(transformers, f"{_CONFIGS.get(architecture, architecture)}Config")
    model = getattr(transformers, f"{architecture}ForCausalLM")(kind(**config))
    model.save_pretrained(folder)
