"""Write a Hugging Face fast tokenizer into GGUF so that llama.cpp gives the same ids.

Two kinds have a form there; all others are refused. The tokenizer is the one that transformers
makes of the files: for some classes it has other rules than tokenizer.json, which training uses.

Byte-level BPE: llama.cpp does not read the pre-tokenizer's rules; it has them built in under names.
A wrong name silently gives other token ids, so the rules in tokenizer.json are compared with those
of each name that is known here. Source: `get_vocab_base_pre` in llama.cpp's conversion and
`llm_tokenizer_bpe` in src/llama-vocab.cpp.

BPE of SentencePiece's kind (Llama 2, Mistral, Gemma, Phi-3) works on characters with `▁` for a
space, and falls back to bytes. tokenizer.json has a list of merges; llama.cpp has a score for each
token, and merges the two neighbours that make the token with the highest score. Both give the same
ids if every pair that makes a token is a merge, and if the merges stand in the order of scores, as
they do in files that were converted from SentencePiece. Source: `generate_merges` in transformers,
`llm_tokenizer_spm_session` in llama.cpp's src/llama-vocab.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneline.errors import UserError
from tuneline.models.base_model import load_tokenizer, read_json
from tuneline.models.chat_templates import adapt_template, read_chat_template, special_names

# Tokens with which chat models end a turn, where it is not their end-of-sequence token.
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<turn|>")

# llama.cpp has no key for tokens that take the white space after them with them. It knows Phi-3's
# by the model's name: there every token that is split off does, but for these three.
_PHI3_NAMES = ("phi-3", "phi3")
_PHI3_PLAIN = {"<unk>", "<s>", "<|endoftext|>"}

_FOREIGN = "Serve this model with an engine that reads Hugging Face checkpoints"


def read_tokenizer(directory: Path, vocab_size: int, name: str = "model") -> dict[str, Any]:
    """Read a tokenizer as the values of GGUF's keys, by the method of `gguf.GGUFWriter` for each.

    Args:
        vocab_size: rows of the embedding; ids without a token become unused ones.
        name: name of the model; llama.cpp takes one with `phi-3` in it as a statement about the
            tokenizer, so that it may become another one.

    Raises:
        UserError: if it has no form in GGUF.
    """
    refuse_foreign(read_json(directory / "tokenizer.json"), directory)
    tokenizer = load_tokenizer(directory)
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    pre = refuse_foreign(document, directory)
    if pre == "gpt-4o" and _merges_make_all(document):
        pre = _WITH_MARKS
    tokens, types = _tokens(document, vocab_size, directory)
    if _strips_as_phi3(document, tokens):
        name = _PHI3_NAMES[0]
    elif any(phi3 in name.lower() for phi3 in _PHI3_NAMES):
        name = "model"
    merges = document["model"]["merges"]
    pieces = (
        {"token_scores": _scores(document, tokens, directory)}
        if pre == "default"
        else {"token_merges": [m if isinstance(m, str) else " ".join(m) for m in merges]}
    )
    return {
        "name": name,
        "tokenizer_model": "llama" if pre == "default" else "gpt2",
        "tokenizer_pre": pre,
        "token_list": tokens,
        "token_types": types,
        **pieces,
        **_special_ids(tokenizer, tokens, directory),
        "add_bos_token": _adds_bos(tokenizer),
        "add_space_prefix": bool(space_prefix(document)),
        # Of a base model too: it is asked as its tuned model is.
        "chat_template": adapt_template(read_chat_template(directory), special_names(tokenizer)),
    }


def _special_ids(tokenizer: Any, tokens: Sequence[str], directory: Path) -> dict[str, int]:
    ids = {token: index for index, token in enumerate(tokens)}
    found = {
        f"{role}_token_id": ids[text]
        for role in ("bos", "eos", "unk", "pad")
        if (text := getattr(tokenizer, f"{role}_token")) in ids
    }
    eos = found.get("eos_token_id")
    if eos is None:
        raise UserError(f"{directory / 'tokenizer_config.json'} names no eos_token")
    if turn_ends := [ids[token] for token in END_OF_TURN if token in ids]:
        found["eot_token_id"] = eos if eos in turn_ends else turn_ends[0]
    return found


def refuse_foreign(document: Mapping[str, Any], directory: Path) -> str:
    """Refuse a tokenizer.json that has no form in GGUF; return the name of its pre-tokenizer.

    Raises:
        UserError: if it is of another kind, or llama.cpp's name for its rules is not known.
    """
    model = document.get("model") or {}
    where = directory / "tokenizer.json"
    if model.get("type") != "BPE":
        raise UserError(
            f"{where}: only BPE tokenizers can be exported to GGUF, this one is "
            f"{model.get('type')!r}. {_FOREIGN}"
        )
    if space_prefix(document) is not None:
        return "default"
    name = None if model.get("byte_fallback") else pre_tokenizer_name(document)
    if name is None:
        normalizers = [part.get("type") for part in parts(document.get("normalizer"))]
        raise UserError(
            f"{where}: no llama.cpp pre-tokenizer is known for the rules {list(_rules(document))} "
            f"with normalizer {normalizers or 'none'}; a guess would give wrong token ids. "
            f"{_FOREIGN}"
        )
    return name


def _tokens(
    document: Mapping[str, Any], vocab_size: int, directory: Path
) -> tuple[list[str], list[int]]:
    """Return token and type of each id."""
    from gguf import TokenType

    model = document["model"]
    by_id = {index: token for token, index in model["vocab"].items()}
    kinds = dict.fromkeys(by_id, TokenType.NORMAL)
    if model.get("byte_fallback"):
        for token in byte_tokens(model["vocab"]):
            kinds[model["vocab"][token]] = TokenType.BYTE
    for added in split_off(document):
        by_id[added["id"]] = added["content"]
        kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    if model.get("byte_fallback") and model.get("unk_token") in model["vocab"]:
        kinds[model["vocab"][model["unk_token"]]] = TokenType.UNKNOWN
    if max(by_id) >= vocab_size:
        raise UserError(
            f"{directory}: the tokenizer has ids up to {max(by_id)}, the model only {vocab_size} "
            "rows; resize the embedding and save the model again"
        )
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(vocab_size)]
    return tokens, [int(kinds.get(index, TokenType.UNUSED)) for index in range(vocab_size)]


def _scores(document: Mapping[str, Any], tokens: Sequence[str], directory: Path) -> list[float]:
    vocabulary, merges = document["model"]["vocab"], document["model"]["merges"]
    apart = {*byte_tokens(vocabulary), *(added["content"] for added in split_off(document))}
    try:
        found = scores(vocabulary, merges, apart)
    except UserError as error:
        raise UserError(f"{directory / 'tokenizer.json'}: {error}. {_FOREIGN}") from None
    lowest = min(found.values(), default=0.0) - 1
    return [found.get(token, lowest) for token in tokens]


def _adds_bos(tokenizer: Any) -> bool:
    """Return True if a server shall put the first token of a text before a chat."""
    from jinja2 import TemplateError

    bos = tokenizer.bos_token
    if bos is None or tokenizer("a")["input_ids"][:1] != [tokenizer.bos_token_id]:
        return False
    try:
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True
        )
    except (TemplateError, ValueError):
        return False
    return bool(chat.startswith(bos))


def _strips_as_phi3(document: Mapping[str, Any], tokens: Sequence[str]) -> bool:
    added = document.get("added_tokens", [])
    stripping = {entry["content"] for entry in added if entry.get("rstrip")}
    split_off = {entry["content"] for entry in added} | {"</s>"}
    known = {*_PHI3_PLAIN, "</s>"} <= set(tokens)
    return known and bool(stripping) and stripping == split_off - _PHI3_PLAIN


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
    ignores_merges = bool((document.get("model") or {}).get("ignore_merges"))
    name = _NAMES.get((_rules(document), ignores_merges))
    normalizers = [part.get("type") for part in parts(document.get("normalizer"))]
    # llama.cpp does not normalise; its own converter drops Qwen2's NFC too.
    allowed = [["NFC"], []] if name == "qwen2" else [[]]
    return name if normalizers in allowed else None


def _merges_make_all(document: Mapping[str, Any]) -> bool:
    """Return True if merges make every token, so that whole words may be taken without them."""
    from tokenizers import Tokenizer

    plain = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "truncation"))
    bare = {**document, **plain, "padding": None, "added_tokens": []}
    split_off = {added["content"] for added in document.get("added_tokens", [])}
    tokens = [token for token in document["model"]["vocab"] if token not in split_off]
    encoded = Tokenizer.from_str(json.dumps(bare)).encode_batch_fast(tokens)
    return all(len(encoding) == 1 for encoding in encoded)


def parts(entry: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Return the steps of a normalizer or a pre-tokenizer of tokenizer.json."""
    if entry is None:
        return []
    if entry.get("type") == "Sequence":
        return list(entry.get("pretokenizers") or entry.get("normalizers") or [])
    return [entry]


def _rules(document: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(_rule(part) for part in parts(document.get("pre_tokenizer")))


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


SPACE = "▁"
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

# Normalizer and pre-tokenizer, and whether llama.cpp puts a space before each text. What `first`
# does to a text that does not begin with a special token has no form in GGUF; chats begin with one.
_PREFIXED: Mapping[tuple[tuple[str, ...], tuple[str, ...]], bool] = {
    (("replace",), ()): False,
    (("replace",), ("split",)): False,
    (("prepend", "replace"), ()): True,
    ((), ("metaspace always",)): True,
    ((), ("metaspace first",)): False,
    ((), ("metaspace never",)): False,
}


def space_prefix(document: Mapping[str, Any]) -> bool | None:
    """Return True if this kind of tokenizer puts a space before each text; None for others."""
    model = document.get("model") or {}
    if model.get("type") != "BPE" or not model.get("byte_fallback") or model.get("ignore_merges"):
        return None
    vocabulary = model.get("vocab") or {}
    # Gemma's files have the tabulator itself in the place of its byte.
    if any(b not in vocabulary and chr(i) not in vocabulary for i, b in enumerate(_BYTES)):
        return None
    normalizers = tuple(_step(part) for part in parts(document.get("normalizer")))
    steps = tuple(_step(part) for part in parts(document.get("pre_tokenizer")))
    return _PREFIXED.get((normalizers, steps))


def byte_tokens(vocabulary: Mapping[str, int]) -> list[str]:
    """Return the tokens that stand for a byte."""
    return [token for token in _BYTES if token in vocabulary]


def split_off(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the added tokens that are split off a text before it is merged.

    transformers looks for added tokens before it replaces spaces, so that those of `▁` alone, which
    Gemma has for runs of spaces, come from merges like any other.
    """
    model = document["model"]
    return [
        added
        for added in document.get("added_tokens", [])
        if added["special"]
        or not (model.get("byte_fallback") and SPACE in added["content"])
        or added["content"] not in model["vocab"]
    ]


def _step(part: Mapping[str, Any]) -> str:
    kind, pattern = part.get("type"), (part.get("pattern") or {}).get("String")
    if kind == "Replace" and (pattern, part.get("content")) == (" ", SPACE):
        return "replace"
    if kind == "Prepend" and part.get("prepend") == SPACE:
        return "prepend"
    # After the normalizer there is no space left to split at.
    if kind == "Split" and pattern == " ":
        return "split"
    if kind == "Metaspace" and part.get("replacement") == SPACE and not part.get("split", True):
        return f"metaspace {part.get('prepend_scheme', 'always')}"
    return str(kind)


def scores(
    vocabulary: Mapping[str, int], merges: Iterable[str | Sequence[str]], apart: Collection[str]
) -> dict[str, float]:
    """Return scores that make llama.cpp merge as the merges do; 0 is the highest.

    Args:
        merges: pairs of tokens, the first merge first.
        apart: tokens that are split off before, so that no merge makes them: special ones, bytes.

    Raises:
        UserError: if no scores do so.
    """
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for rank, pair in enumerate(pairs):
        token = "".join(pair)
        first.setdefault(token, rank)
        last[token] = rank
    _refuse_missing(vocabulary, set(pairs), apart)
    found: dict[str, float] = {}
    level, end, group = 0, -1, list[str]()
    for token, rank in first.items():
        if rank > end:
            _refuse_mixed(group)
            level, group = level - 1, []
        group.append(token)
        end = max(end, last[token])
        found[token] = float(level + 1)
    _refuse_mixed(group)
    return found


def _refuse_missing(
    vocabulary: Mapping[str, int], pairs: Collection[tuple[str, ...]], apart: Collection[str]
) -> None:
    """Refuse a vocabulary with a token that llama.cpp would make of a pair that is no merge."""
    for token in vocabulary:
        if token in apart:
            continue
        for at in range(1, len(token)):
            pair = (token[:at], token[at:])
            if pair[0] in vocabulary and pair[1] in vocabulary and pair not in pairs:
                raise UserError(
                    f"the tokenizer does not merge {pair[0]!r} and {pair[1]!r}, although "
                    f"{token!r} is a token; llama.cpp would, and give other token ids"
                )


def _refuse_mixed(group: Sequence[str]) -> None:
    """Refuse tokens whose merges are mixed, but for runs of one character, which can't clash."""
    mixed = [token for token in group if len(set(token)) > 1]
    if len(group) > 1 and mixed:
        raise UserError(
            f"the tokenizer's merges for {mixed[0]!r} stand between those for other tokens; "
            "llama.cpp has one score for each token, and would give other token ids"
        )
