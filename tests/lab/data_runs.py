"""A dataset file, a base model with a real tokenizer, and a run of the data steps over them."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tests.lab.runs import Lab
from tests.lab.tiny_models import make_tokenizer

from tuneline.artifacts.data import REJECTED
from tuneline.catalogue import DATA_ORDER
from tuneline.data.gates.run_gate import GateResult, run_gate
from tuneline.evidence import Evidence, Record

WORDS = (
    "parcel invoice kettle garden window blanket teapot ladder pillow basket hammer curtain "
    "mirror lantern bottle carpet drawer engine feather guitar helmet island jacket kitten lemon "
    "magnet napkin orange pencil quilt rabbit saddle thread umbrella violin wallet yoghurt zipper "
    "anchor bridge candle dragon escape fabric glacier harvest insect jungle kayak library"
).split()


def make_base(directory: Path) -> Path:
    """Make a base model's directory: a trained tokenizer, a configuration, a weight file."""
    import numpy as np
    from safetensors.numpy import save_file

    make_tokenizer("smollm", directory)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "vocab_size": 480,
        "model_type": "llama",
    }
    (directory / "config.json").write_text(json.dumps(config))
    save_file({"weight": np.zeros((2, 2), dtype=np.float32)}, directory / "model.safetensors")
    return directory


def text(number: int, words: int = 9) -> str:
    """Return a sentence; no two numbers give similar ones."""
    chosen = [WORDS[(number * 7 + k * (11 + number % 13)) % len(WORDS)] for k in range(words)]
    return f"{' '.join(chosen)} {number * 7919:x}"


def chat(user: str, assistant: str, system: str | None = None) -> list[dict[str, str]]:
    """Return an exchange, with a system turn if given."""
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return [{"role": "system", "content": system}, *turns] if system else turns


def answer(intent: str, reply: str) -> str:
    """Return a JSON answer."""
    return json.dumps({"intent": intent, "reply": reply})


def in_form(turns: list[dict[str, str]], form: str) -> dict[str, Any]:
    """Return an exchange with a system turn in one of the input forms."""
    system, user, told = (turn["content"] for turn in turns)
    senders = {"system": "system", "user": "human", "assistant": "gpt"}
    header = "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>"
    return {
        "messages": {"messages": turns},
        "sharegpt": {
            "conversations": [{"from": senders[t["role"]], "value": t["content"]} for t in turns]
        },
        "alpaca": {"system": system, "instruction": user, "input": "", "output": told},
        "prompt_completion": {"system": system, "prompt": user, "completion": told},
        "chatml_text": {
            "text": "".join("<|im_start|>{role}\n{content}<|im_end|>\n".format(**t) for t in turns)
        },
        "llama3_text": {
            "text": "<|begin_of_text|>" + "".join(header.format(**turn) for turn in turns)
        },
    }[form]


def clean_rows(count: int, labels: tuple[str, ...] = ("billing", "login", "shipping")) -> list[Any]:
    """Return rows without a fault, in the messages form."""
    return [
        {
            "messages": chat(
                text(n), answer(labels[n % len(labels)], f"Let us see {text(n + 5000, 4)}.")
            )
        }
        for n in range(count)
    ]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """Write rows as JSON lines; bytes stay as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


class DataLab:
    """A run over one dataset."""

    def __init__(self, root: Path, base: Path, rows: list[Any], **data: Any) -> None:
        source = write_jsonl(root / "rows.jsonl", rows)
        settings = {"source": str(source), "max_tokens": 2048, "pii_ner": False, **data}
        # What leaks is judged where it is the subject; there are few canaries elsewhere.
        settings = {"pii_canaries": 20, "pii_max_left": None, **settings}
        settings.setdefault("pii_profile", ["pci"])
        named = "intent" if b"intent" in source.read_bytes() else None
        settings.setdefault("label_field", named)
        self.lab = Lab(root, {"data": settings, "base_model": str(base)})
        self.run = self.lab.run

    def step(self, name: str) -> Evidence | Record:
        """Run one step as the pipeline does."""
        return self.lab.execute(name)

    def upto(self, last: str) -> Evidence:
        """Run the steps up to an item; return its evidence."""
        for name in DATA_ORDER[: DATA_ORDER.index(last) + 1]:
            entry = self.step(name)
        return entry

    def gate(self, item: str) -> GateResult:
        """Run an item's gate."""
        return run_gate(self.run, item)

    def agree(self, item: str, verdict: str) -> GateResult:
        """Assert that an item, which was run, and its gate both reach a verdict."""
        gate = self.gate(item)
        found = (self.run.find_evidence(item).verdict, gate.verdict, gate.agrees)
        assert found == (verdict, verdict, True), gate.summary
        return gate

    def table(self, step: str, name: str) -> list[dict[str, Any]]:
        """Return the rows of a stored table."""
        return pq.read_table(self.lab.artifact(step, name)).to_pylist()

    def rejected(self, step: str) -> list[dict[str, Any]]:
        """Return the rejects of a step."""
        return self.table(step, REJECTED)


def code(reject: dict[str, Any]) -> str:
    """Return a reject's reason without its detail."""
    return reject["reason"].split(":")[0]
