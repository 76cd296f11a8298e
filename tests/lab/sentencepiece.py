"""Tiny tokenizers of SentencePiece's kind, with the rules and the chat templates of families.

They are built as transformers converts a SentencePiece model: scored pieces, and of those all
merges that can make a piece.
"""

from collections.abc import Sequence
from dataclasses import dataclass

GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ ' ' + m['content'] + eos_token }}{% else %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
    "{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Kind:
    """A family's tokenizer.

    Attributes:
        rules: `gemma`, `llama` (a space before each text) or `mistral` (before the first).
        control: its special tokens, in the order of their ids.
        runs: tokens of runs of one character, which are added tokens with the highest score.
        strip: special tokens that take white space after them with them.
        bos, eos, pad: special tokens by role.
        adds_bos: whether BOS is put before a text.
        template: its chat template.
    """

    rules: str
    control: tuple[str, ...]
    template: str
    bos: str
    eos: str
    pad: str
    adds_bos: bool = True
    runs: tuple[str, ...] = ()
    strip: tuple[str, ...] = ()


_TURNS = ("<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
KINDS = {
    "gemma": Kind(
        rules="gemma",
        control=("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        runs=("\n\n", "\n\n\n", "▁▁", "▁▁▁", "▁▁▁▁", "<table>"),
        template=GEMMA_TEMPLATE,
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
    ),
    "phi-3": Kind(
        rules="llama",
        control=("<unk>", "<s>", "</s>", "<|endoftext|>", *_TURNS),
        strip=("</s>", *_TURNS),
        template=PHI3_TEMPLATE,
        bos="<s>",
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        adds_bos=False,
    ),
    "mistral": Kind(
        rules="mistral",
        control=("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
        template=MISTRAL_TEMPLATE,
        bos="<s>",
        eos="</s>",
        pad="</s>",
    ),
}


def train_tokenizer(name: str, texts: Sequence[str], vocab_size: int):
    """Train the tokenizer of a family on texts."""
    from tokenizers import (
        AddedToken,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )
    from transformers import PreTrainedTokenizerFast
    from transformers.tokenization_utils_base import generate_merges

    kind = KINDS[name]
    scores = _pieces(kind, texts, vocab_size)
    vocabulary = {piece: index for index, piece in enumerate(scores)}
    merges = generate_merges(vocabulary, scores)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    replace = normalizers.Replace(" ", "▁")
    decoder = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind.rules == "gemma":
        tokenizer.normalizer = replace
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif kind.rules == "llama":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
        decoder.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
        decoder.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(decoder)
    special = [
        AddedToken(token, special=True, normalized=False, rstrip=token in kind.strip)
        for token in kind.control
    ]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in kind.runs])
    if kind.adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{kind.bos} $A", special_tokens=[(kind.bos, vocabulary[kind.bos])]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=kind.bos,
        eos_token=kind.eos,
        pad_token=kind.pad,
        unk_token="<unk>",
    )
    fast.chat_template = kind.template
    return fast


def _pieces(kind: Kind, texts: Sequence[str], vocab_size: int) -> dict[str, float]:
    """Score of each piece, in the order of ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    # As SentencePiece splits: a space begins a piece, digits stay alone.
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace("▁", "never"), pre_tokenizers.Digits(individual_digits=True)]
    )
    fixed = [*kind.control, *(f"<0x{byte:02X}>" for byte in range(256)), *kind.runs]
    if kind.rules == "gemma":
        # As its converter does it.
        fixed[fixed.index("<0x09>")] = "\t"
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(fixed), limit_alphabet=80, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    learnt = sorted(learner.get_vocab(), key=learner.get_vocab().__getitem__)
    merged = [piece for piece in learnt if len(piece) > 1]
    scores = dict.fromkeys(fixed, 0.0)
    scores |= {piece: -float(rank) for rank, piece in enumerate(merged, 1) if piece not in scores}
    single = [piece for piece in learnt if len(piece) == 1] + ["▁", "\n"]
    return scores | {piece: -1000.0 for piece in single if piece not in scores}
