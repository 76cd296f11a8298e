"""Write a Hugging Face fast tokenizer into GGUF so that llama.cpp gives the same ids.

llama.cpp does not read the pre-tokenizer's rules; it has them built in under names. A wrong
name silently gives other token ids, so the rules in tokenizer.json are compared with those of
each name that is known here, and a tokenizer that matches none is refused.
Source: `get_vocab_base_pre` in llama.cpp's conversion and `llm_tokenizer_bpe` in
src/llama-vocab.cpp.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.errors import UserError
from tuneline.models.base_model import read_json

# The rules of GPT-2's successors, as in their tokenizer.json files.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Pre-tokenizer rules and llama.cpp's name for them. A test compares the ids of each.
_KNOWN_RULES: dict[tuple[str, ...], str] = {
    ("digits", "bytelevel+regex"): "smollm",
    ("bytelevel+regex",): "gpt-2",
    (f"split {_LLAMA3_SPLIT}", "bytelevel"): "llama-bpe",
    (f"split {_QWEN2_SPLIT}", "bytelevel"): "qwen2",
}

# Tokens with which chat models end a turn, where it is not their end-of-sequence token.
_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")


@dataclass(frozen=True)
class TokenizerFacts:
    """The values of the file's `tokenizer.*` keys; ids by token as in the vocabulary."""

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special_ids: dict[str, int]
    add_bos: bool
    chat_template: str


def read_tokenizer(directory: Path, vocab_size: int) -> TokenizerFacts:
    """Read a byte-level BPE tokenizer.

    Args:
        directory: folder with tokenizer.json, tokenizer_config.json and the chat template.
        vocab_size: rows of the embedding; ids without a token become unused ones.

    Raises:
        UserError: if it is another kind of tokenizer, or llama.cpp's name for its rules is not
            known.
    """
    from gguf import TokenType

    document = read_json(directory / "tokenizer.json")
    settings = read_json(directory / "tokenizer_config.json")
    pre = refuse_foreign(document, directory)
    model = document["model"]
    by_id = {index: token for token, index in model["vocab"].items()}
    kinds = dict.fromkeys(by_id, TokenType.NORMAL)
    for added in document.get("added_tokens", []):
        by_id[added["id"]] = added["content"]
        kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    if max(by_id) >= vocab_size:
        raise UserError(
            f"{directory}: the tokenizer has ids up to {max(by_id)}, the model only {vocab_size} "
            "rows; resize the embedding and save the model again"
        )
    for index in range(vocab_size):
        by_id.setdefault(index, f"[PAD{index}]")
        kinds.setdefault(index, TokenType.UNUSED)
    ids = {token: index for index, token in by_id.items()}
    special = {
        name: ids[text]
        for name in ("bos", "eos", "unk", "pad")
        if (text := _token_text(settings.get(f"{name}_token"))) in ids
    }
    if "eos" not in special:
        raise UserError(f"{directory / 'tokenizer_config.json'} names no eos_token")
    turn_ends = [ids[token] for token in _END_OF_TURN if token in ids]
    if turn_ends:
        special["eot"] = special["eos"] if special["eos"] in turn_ends else turn_ends[0]
    return TokenizerFacts(
        pre=pre,
        tokens=[by_id[index] for index in range(vocab_size)],
        types=[int(kinds[index]) for index in range(vocab_size)],
        merges=[m if isinstance(m, str) else " ".join(m) for m in model["merges"]],
        special_ids=special,
        add_bos=_adds_bos(directory, special.get("bos")),
        chat_template=read_chat_template(directory, settings),
    )


def refuse_foreign(document: dict[str, Any], directory: Path) -> str:
    """Refuse a tokenizer that has no form in GGUF; return the name of its pre-tokenizer.

    Args:
        document: content of its tokenizer.json.
        directory: the model's directory, for an error.

    Raises:
        UserError: if it is another kind of tokenizer, or llama.cpp's name for its rules is not
            known.
    """
    model = document.get("model") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise UserError(
            f"{directory / 'tokenizer.json'}: only byte-level BPE tokenizers can be exported to "
            f"GGUF, this one is {model.get('type')!r}"
        )
    return pre_tokenizer_name(document, directory)


def write_tokenizer(writer: Any, facts: TokenizerFacts) -> None:
    """Add a tokenizer's keys to a `gguf.GGUFWriter`."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(facts.pre)
    writer.add_token_list(facts.tokens)
    writer.add_token_types(facts.types)
    writer.add_token_merges(facts.merges)
    adders = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "eot": writer.add_eot_token_id,
        "unk": writer.add_unk_token_id,
        "pad": writer.add_pad_token_id,
    }
    for name, index in facts.special_ids.items():
        adders[name](index)
    writer.add_add_bos_token(facts.add_bos)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(facts.chat_template)


def pre_tokenizer_name(document: dict[str, Any], directory: Path) -> str:
    """Return llama.cpp's name for the pre-tokenizer of a tokenizer.json.

    Raises:
        UserError: if its rules are not known.
    """
    rules = tuple(_rule(part) for part in _parts(document.get("pre_tokenizer")))
    name = _KNOWN_RULES.get(rules)
    normalizers = [part.get("type") for part in _parts(document.get("normalizer"))]
    # llama.cpp does not normalise; its own converter drops Qwen2's NFC too.
    allowed = [["NFC"], []] if name == "qwen2" else [[]]
    if name is None or normalizers not in allowed:
        raise UserError(
            f"{directory / 'tokenizer.json'}: no llama.cpp pre-tokenizer is known for the rules "
            f"{list(rules)} with normalizer {normalizers or 'none'}; a guess would give wrong "
            "token ids. Serve this model with an engine that reads Hugging Face checkpoints"
        )
    return name


def _parts(entry: dict[str, Any] | None) -> list[dict[str, Any]]:
    if entry is None:
        return []
    if entry.get("type") == "Sequence":
        return list(entry.get("pretokenizers") or entry.get("normalizers") or [])
    return [entry]


def _rule(part: dict[str, Any]) -> str:
    kind = part.get("type")
    if kind == "ByteLevel" and not part.get("add_prefix_space"):
        return "bytelevel+regex" if part.get("use_regex", True) else "bytelevel"
    if kind == "Digits" and part.get("individual_digits"):
        return "digits"
    pattern = part.get("pattern", {}).get("Regex") if kind == "Split" else None
    if pattern and part.get("behavior") == "Isolated" and not part.get("invert"):
        return f"split {pattern}"
    return json.dumps(part, sort_keys=True)


def _token_text(entry: Any) -> str | None:
    return entry.get("content") if isinstance(entry, dict) else entry


def _adds_bos(directory: Path, bos: int | None) -> bool:
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(directory / "tokenizer.json")).encode("a").ids
    return bos is not None and bool(ids) and ids[0] == bos


def read_chat_template(directory: Path, settings: dict[str, Any]) -> str:
    """Return the default chat template of a model directory.

    Raises:
        UserError: if there is none.
    """
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if template is None and (directory / "chat_template.json").is_file():
        template = read_json(directory / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    if not isinstance(template, str):
        raise UserError(f"{directory} has no chat template; set one on the tokenizer and save it")
    return template
