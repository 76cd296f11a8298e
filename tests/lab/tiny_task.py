"""A tiny Llama that is trained in seconds and answers a tiny task, for tests of real servers.

The task: a question of made-up words holds one keyword, and the right answer is
the JSON of that keyword's intent. Everything about it is real (tokenizer, chat
template, checkpoint, GGUF) but its size.
"""

import fcntl
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.lab.runs import dataset_rows, exchange
from tests.lab.tiny_models import train_tokenizer

INTENTS = {"invoice": "billing", "password": "login", "parcel": "shipping"}
# What another team calls the same three.
OTHER_INTENTS = {"invoice": "login", "password": "shipping", "parcel": "billing"}


def words() -> list[str]:
    """Two hundred made-up words, always the same ones."""
    draw = random.Random(1)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    return ["".join(draw.sample(syllables, draw.choice((2, 3)))) for _ in range(200)]


def conversation(
    number: int, intents: Mapping[str, str] = INTENTS
) -> tuple[list[dict[str, str]], str]:
    """Row `number` of the task: its messages and its intent."""
    draw = random.Random(number)
    keyword = list(intents)[number % 3]
    text = draw.sample(words(), 6)
    text.insert(draw.randrange(len(text)), keyword)
    intent = intents[keyword]
    return exchange(" ".join(text) + "?", intent), intent


def task_rows(split_sizes: dict[str, int]) -> list[dict[str, Any]]:
    """Rows of the task as `dataset.parquet` holds them; none of them is trained on here."""
    return dataset_rows(split_sizes, lambda number: conversation(1000 + number))


def raw_rows(number: int, path: Path) -> None:
    """Write rows of the other team's task as a user has them, and two that are malformed."""
    rows = [{"messages": conversation(n, OTHER_INTENTS)[0]} for n in range(number)]
    rows += [{"messages": "none"}] * 2
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def make_tokenizer() -> Any:
    """A byte-level BPE tokenizer with SmolLM2's rules and a ChatML template."""
    texts = [turn["content"] for n in range(300) for turn in conversation(n)[0]]
    texts += ["system user assistant\n What is the capital of France? Name two colours."] * 5
    return train_tokenizer("smollm", texts, 800)


def make_model(tokenizer: Any, seed: int = 0, heads: int = 4) -> Any:
    """A random Llama of two layers; rows are multiples of 32, which q8_0 needs."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=heads,
            num_key_value_heads=heads // 2,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train(
    model: Any, tokenizer: Any, rows: int, steps: int, intents: Mapping[str, str] = INTENTS
) -> float:
    """Teach the task on rows 0 to `rows`; gives the last loss."""
    return train_on(
        model, tokenizer, [conversation(number, intents)[0] for number in range(rows)], steps
    )


def train_on(
    model: Any, tokenizer: Any, conversations: Sequence[list[dict[str, str]]], steps: int
) -> float:
    """Teach the last answer of each conversation; gives the last loss."""
    texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in conversations]
    return teach(model, tokenizer, texts, steps)


def teach(
    model: Any, tokenizer: Any, texts: Sequence[str], steps: int, *, whole: bool = False
) -> float:
    """Train on the answers of rendered conversations, or on all of them; gives the last loss."""
    import torch

    batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    # Only the answer counts: everything up to the assistant's header is masked.
    for at, text in enumerate([] if whole else texts):
        prompt = text[: text.index("<|im_start|>assistant\n") + len("<|im_start|>assistant\n")]
        labels[at, : len(tokenizer(prompt, add_special_tokens=False)["input_ids"])] = -100
    optimiser = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.0
    )
    loss = torch.tensor(0.0)
    order = torch.Generator().manual_seed(0)
    for _ in range(steps):
        pick = torch.randint(0, len(texts), (32,), generator=order)
        loss = model(
            input_ids=batch["input_ids"][pick],
            attention_mask=batch["attention_mask"][pick],
            labels=labels[pick],
        ).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return float(loss.detach())


def save(model: Any, tokenizer: Any, folder: Path) -> Path:
    """Save model and tokenizer as a checkpoint directory."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class TinyModels:
    """A base that knows the form of the answers, and a LoRA adapter that knows the task.

    Attributes:
        base: checkpoint of the base, float16.
        adapter: PEFT adapter on it.
        merged: checkpoint with the adapter merged, float16.
        base_gguf: the base in f16.
        candidate_gguf: the merged model in f16.
        adapter_gguf: the adapter.
    """

    def __init__(self, root: Path, heads: int = 4) -> None:
        """Train and export everything below a folder, some ten seconds, unless it is there.

        Args:
            root: the folder. Processes that begin at once train it once.
            heads: attention heads; vLLM on a CPU needs two, since it has no kernel for heads of
                fewer than 32 dimensions.
        """
        self.base, self.adapter, self.merged = (root / n for n in ("base", "adapter", "merged"))
        self.base_gguf, self.candidate_gguf = root / "base.gguf", root / "candidate.gguf"
        self.adapter_gguf = root / "adapter.gguf"
        root.mkdir(parents=True, exist_ok=True)
        with (root / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (root / "complete").exists():
                self._make(heads)
                (root / "complete").touch()

    def _make(self, heads: int) -> None:
        import torch
        from peft import LoraConfig, PeftModel, get_peft_model

        from tuneline.gguf.export import export_gguf, export_lora_gguf

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        tokenizer = make_tokenizer()
        model = make_model(tokenizer, heads=heads)
        train(model, tokenizer, 30, 60)
        save(model.half(), tokenizer, self.base)
        model = get_peft_model(
            model.float(), LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
        )
        train(model, tokenizer, 600, 150)
        model.save_pretrained(self.adapter)
        fresh = type(model.base_model.model).from_pretrained(self.base, dtype=torch.float32)
        merged = PeftModel.from_pretrained(fresh, self.adapter).merge_and_unload()
        save(merged.half(), tokenizer, self.merged)
        torch.set_num_threads(threads)
        export_gguf(self.base, self.base_gguf)
        export_gguf(self.merged, self.candidate_gguf)
        export_lora_gguf(self.adapter, self.base, self.adapter_gguf)


def train_adapter(base: Path, folder: Path, intents: Mapping[str, str], steps: int = 500) -> Path:
    """Train an adapter of a tiny base on its own names of the intents; its PEFT folder."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    tuned = get_peft_model(model, settings)
    train(tuned, make_tokenizer(), 600, steps, intents)
    tuned.save_pretrained(folder)
    torch.set_num_threads(threads)
    return folder
