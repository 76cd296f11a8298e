"""Write a Hugging Face fast tokenizer into GGUF so that llama.cpp gives the same ids.

Two kinds have a form there: byte-level BPE, whose pre-tokenizer llama.cpp knows by name
(`pre_tokenizers`), and BPE of SentencePiece's kind, with a score for each token
(`sentencepiece`). All others are refused. The tokenizer is the one that transformers makes of the
files: for some classes it has other rules than tokenizer.json, and training uses those.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.errors import UserError
from tuneline.gguf.pre_tokenizers import closest_name, pre_tokenizer_name, rules_of
from tuneline.gguf.sentencepiece import byte_tokens, scores, space_prefix, split_off
from tuneline.models.base_model import load_tokenizer, read_json

# Tokens with which chat models end a turn, where it is not their end-of-sequence token.
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")

# llama.cpp has no key for tokens that take the white space after them with them. It knows Phi-3's
# by the model's name: there every token that is split off does, but for these three.
PHI3_NAME = "phi-3"
_PHI3_NAMES = (PHI3_NAME, "phi3")
_PHI3_PLAIN = {"<unk>", "<s>", "<|endoftext|>"}

_FOREIGN = "Serve this model with an engine that reads Hugging Face checkpoints"


@dataclass(frozen=True)
class TokenizerFacts:
    """The values of the file's `tokenizer.*` keys; ids by token as in the vocabulary.

    Attributes:
        pre: llama.cpp's name for the pre-tokenizer; `default` for SentencePiece's kind.
        tokens: tokens by id.
        types: their types, `gguf.TokenType`.
        merges: merges of a byte-level tokenizer, two tokens with a space between them.
        scores: scores by id of a tokenizer of SentencePiece's kind; none for a byte-level one.
        space_prefix: whether a space is put before each text.
        special_ids: ids by role: `bos`, `eos`, `eot`, `unk`, `pad`.
        add_bos: whether a server puts the first token of a text before it.
        chat_template: the chat template.
        strips_as_phi3: whether special tokens take the white space after them, as Phi-3's do.
    """

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    space_prefix: bool
    special_ids: dict[str, int]
    add_bos: bool
    chat_template: str
    strips_as_phi3: bool


def read_tokenizer(directory: Path, vocab_size: int) -> TokenizerFacts:
    """Read a tokenizer.

    Args:
        directory: folder with tokenizer.json, tokenizer_config.json and the chat template.
        vocab_size: rows of the embedding; ids without a token become unused ones.

    Raises:
        UserError: if it has no form in GGUF.
    """
    settings = read_json(directory / "tokenizer_config.json")
    refuse_foreign(read_json(directory / "tokenizer.json"), directory)
    tokenizer = load_tokenizer(directory)
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    pre = closest_name(document, refuse_foreign(document, directory))
    by_id, kinds = _tokens(document, vocab_size, directory)
    ids = {token: index for index, token in by_id.items()}
    special = {
        name: ids[text]
        for name in ("bos", "eos", "unk", "pad")
        if (text := getattr(tokenizer, f"{name}_token")) in ids
    }
    if "eos" not in special:
        raise UserError(f"{directory / 'tokenizer_config.json'} names no eos_token")
    turn_ends = [ids[token] for token in END_OF_TURN if token in ids]
    if turn_ends:
        special["eot"] = special["eos"] if special["eos"] in turn_ends else turn_ends[0]
    model = document["model"]
    scored: list[float] = []
    if pre == "default":
        scored = _scores(document, by_id, directory)
    return TokenizerFacts(
        pre=pre,
        tokens=[by_id[index] for index in range(vocab_size)],
        types=[kinds[index] for index in range(vocab_size)],
        merges=[]
        if scored
        else [m if isinstance(m, str) else " ".join(m) for m in model["merges"]],
        scores=scored,
        space_prefix=bool(space_prefix(document)),
        special_ids=special,
        add_bos=_adds_bos(tokenizer),
        chat_template=read_chat_template(directory, settings),
        strips_as_phi3=_strips_as_phi3(document, by_id),
    )


def refuse_foreign(document: Mapping[str, Any], directory: Path) -> str:
    """Refuse a tokenizer that has no form in GGUF; return the name of its pre-tokenizer.

    Args:
        document: content of its tokenizer.json.
        directory: the model's directory, for an error.

    Raises:
        UserError: if it is another kind of tokenizer, or llama.cpp's name for its rules is not
            known.
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
        raise UserError(
            f"{where}: no llama.cpp pre-tokenizer is known for the rules {rules_of(document)}; a "
            f"guess would give wrong token ids. {_FOREIGN}"
        )
    return name


def write_tokenizer(writer: Any, facts: TokenizerFacts) -> None:
    """Add a tokenizer's keys to a `gguf.GGUFWriter`."""
    writer.add_tokenizer_model("llama" if facts.scores else "gpt2")
    writer.add_tokenizer_pre(facts.pre)
    writer.add_token_list(facts.tokens)
    writer.add_token_types(facts.types)
    if facts.scores:
        writer.add_token_scores(facts.scores)
    else:
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
    writer.add_add_space_prefix(facts.space_prefix)
    writer.add_chat_template(facts.chat_template)


def model_name(wanted: str, facts: TokenizerFacts) -> str:
    """Return the name that a file with this tokenizer must have.

    llama.cpp takes a name with `phi-3` in it as a statement about the tokenizer.
    """
    if facts.strips_as_phi3:
        return PHI3_NAME
    plain = wanted.lower()
    return "model" if any(name in plain for name in _PHI3_NAMES) else wanted


def _tokens(
    document: Mapping[str, Any], vocab_size: int, directory: Path
) -> tuple[dict[int, str], dict[int, int]]:
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
    for index in range(vocab_size):
        by_id.setdefault(index, f"[PAD{index}]")
        kinds.setdefault(index, TokenType.UNUSED)
    return by_id, {index: int(kind) for index, kind in kinds.items()}


def _scores(document: Mapping[str, Any], by_id: Mapping[int, str], directory: Path) -> list[float]:
    vocabulary, merges = document["model"]["vocab"], document["model"]["merges"]
    apart = {*byte_tokens(vocabulary), *(added["content"] for added in split_off(document))}
    try:
        found = scores(vocabulary, merges, apart)
    except UserError as error:
        raise UserError(f"{directory / 'tokenizer.json'}: {error}. {_FOREIGN}") from None
    lowest = min(found.values(), default=0.0) - 1
    return [found.get(by_id[index], lowest) for index in range(len(by_id))]


def _adds_bos(tokenizer: Any) -> bool:
    """Tell whether a server shall put the first token of a text before a chat.

    A server takes it off the rendered chat first, if it is there. A template that leaves it out
    meant to: training sees such chats without it.
    """
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


def _strips_as_phi3(document: Mapping[str, Any], by_id: Mapping[int, str]) -> bool:
    added = document.get("added_tokens", [])
    stripping = {entry["content"] for entry in added if entry.get("rstrip")}
    split_off = {entry["content"] for entry in added} | {"</s>"}
    known = {*_PHI3_PLAIN, "</s>"} <= set(by_id.values())
    return known and bool(stripping) and stripping == split_off - _PHI3_PLAIN


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
