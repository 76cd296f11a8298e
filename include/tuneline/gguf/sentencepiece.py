"""Write BPE tokenizers of SentencePiece's kind (Llama 2, Mistral, Gemma, Phi-3) into GGUF.

They work on characters with `▁` for a space, and fall back to bytes. tokenizer.json has a list of
merges; llama.cpp has a score for each token, and merges the two neighbours that make the token
with the highest score. Both give the same ids if every pair that makes a token is a merge, and if
the merges stand in the order of scores, as they do in files that were converted from SentencePiece.
Source: `generate_merges` in transformers, `llm_tokenizer_spm_session` in llama.cpp's
src/llama-vocab.cpp.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from tuneline.errors import UserError
from tuneline.gguf.pre_tokenizers import parts

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
    """Tell whether a tokenizer of this kind puts a space before each text.

    Args:
        document: content of a tokenizer.json.

    Returns:
        The answer; None if the tokenizer is of another kind.
    """
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
    """Return scores that make llama.cpp merge as the merges do.

    Args:
        vocabulary: id of each token.
        merges: pairs of tokens, the first merge first.
        apart: tokens that no merge makes, since they are split off before: special tokens and
            bytes.

    Returns:
        The score of each token that merges make; 0 is the highest.

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
