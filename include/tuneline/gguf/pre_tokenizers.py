"""Name the pre-tokenizer of a byte-level BPE tokenizer as llama.cpp knows it.

llama.cpp does not read the pre-tokenizer's rules; it has them built in under names. A wrong
name silently gives other token ids, so the rules in tokenizer.json are compared with those of
each name that is known here, and a tokenizer that matches none is refused.
Source: `get_vocab_base_pre` in llama.cpp's conversion and `llm_tokenizer_bpe` in
src/llama-vocab.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# The rules of GPT-2's successors, as in their tokenizer.json files.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Three digits at most: GPT-4, Llama 3 and Phi-4.
GPT4_SPLIT = _WORDS + r"\p{N}{1,3}|" + _REST
# One digit: Qwen2, Qwen2.5 and Qwen3.
QWEN2_SPLIT = _WORDS + r"\p{N}|" + _REST

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_START = r"[^\r\n\p{L}\p{N}]?"
_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"


def _cased(ending: str, digits: str) -> str:
    words = f"{_START}{_UPPER}*{_LOWER}+{ending}|{_START}{_UPPER}+{_LOWER}*{ending}|"
    return words + digits + "|" + _SLASHES


# GPT-4o and Phi-4-mini; Mistral's Tekken (Nemo and later).
GPT4O_SPLIT = _cased(_SHORT, r"\p{N}{1,3}")
TEKKEN_SPLIT = _cased("", r"\p{N}")

# llama.cpp's `gpt-4o` cuts words at combining marks (Hindi, Thai, Arabic vowels), which the rules
# do not. The rules under this name don't cut there; whole words are taken without merges.
_WITH_MARKS = "granite-embed-multi-97m"

# Pre-tokenizer rules, whether whole words of the vocabulary are taken without merges, and
# llama.cpp's name for both. A test compares the ids of each.
_NAMES: Mapping[tuple[tuple[str, ...], bool], str] = {
    (("digits", "bytelevel+regex"), False): "smollm",
    (("bytelevel+regex",), False): "gpt-2",
    ((f"split {GPT4_SPLIT}", "bytelevel"), True): "llama-bpe",
    ((f"split {GPT4_SPLIT}", "bytelevel"), False): "dbrx",
    ((f"split {QWEN2_SPLIT}", "bytelevel"), False): "qwen2",
    ((f"split {GPT4O_SPLIT}", "bytelevel"), False): "gpt-4o",
    ((f"split {GPT4O_SPLIT}", "bytelevel"), True): _WITH_MARKS,
    ((f"split {TEKKEN_SPLIT}", "bytelevel"), True): "tekken",
}


def pre_tokenizer_name(document: Mapping[str, Any]) -> str | None:
    """Return llama.cpp's name for the rules of a tokenizer.json; None if there is none."""
    rules = tuple(_rule(part) for part in parts(document.get("pre_tokenizer")))
    name = _NAMES.get((rules, bool((document.get("model") or {}).get("ignore_merges"))))
    normalizers = [part.get("type") for part in parts(document.get("normalizer"))]
    # llama.cpp does not normalise; its own converter drops Qwen2's NFC too.
    allowed = [["NFC"], []] if name == "qwen2" else [[]]
    return name if normalizers in allowed else None


def closest_name(document: Mapping[str, Any], name: str) -> str:
    """Return the name under which llama.cpp's rules are closest to those of a tokenizer.json.

    Args:
        document: content of the tokenizer.json.
        name: llama.cpp's usual name for its rules.
    """
    return _WITH_MARKS if name == "gpt-4o" and _merges_make_all(document) else name


def _merges_make_all(document: Mapping[str, Any]) -> bool:
    """Return True if merges make every token, so that whole words may be taken without them."""
    from tokenizers import Tokenizer

    plain = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "truncation"))
    bare = {**document, **plain, "padding": None, "added_tokens": []}
    split_off = {added["content"] for added in document.get("added_tokens", [])}
    tokens = [token for token in document["model"]["vocab"] if token not in split_off]
    encoded = Tokenizer.from_str(json.dumps(bare)).encode_batch_fast(tokens)
    return all(len(encoding) == 1 for encoding in encoded)


def rules_of(document: Mapping[str, Any]) -> str:
    """Return the rules of a tokenizer.json for an error."""
    rules = [_rule(part) for part in parts(document.get("pre_tokenizer"))]
    normalizers = [part.get("type") for part in parts(document.get("normalizer"))]
    return f"{rules} with normalizer {normalizers or 'none'}"


def parts(entry: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Return the steps of a normalizer or a pre-tokenizer of tokenizer.json."""
    if entry is None:
        return []
    if entry.get("type") == "Sequence":
        return list(entry.get("pretokenizers") or entry.get("normalizers") or [])
    return [entry]


def _rule(part: Mapping[str, Any]) -> str:
    kind = part.get("type")
    if kind == "ByteLevel" and not part.get("add_prefix_space"):
        return "bytelevel+regex" if part.get("use_regex", True) else "bytelevel"
    if kind == "Digits" and part.get("individual_digits"):
        return "digits"
    pattern = part.get("pattern", {}).get("Regex") if kind == "Split" else None
    # These patterns match every character, so to keep the matches is to split at them.
    behavior = (part.get("behavior"), bool(part.get("invert")))
    if pattern and behavior in (("Isolated", False), ("Removed", True)):
        return f"split {pattern}"
    return json.dumps(part, sort_keys=True)
