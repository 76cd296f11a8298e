"""The sample datasets that ship: support messages with planted faults, and notes without any."""

from __future__ import annotations

from pathlib import Path

SUPPORT = Path(__file__).with_name("support.jsonl")
FREE_TEXT = Path(__file__).with_name("free_text.jsonl")
SAMPLES = {f"sample://{path.name}": path for path in (SUPPORT, FREE_TEXT)}
