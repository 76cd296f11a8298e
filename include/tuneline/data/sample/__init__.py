"""The sample datasets that ship: support messages with planted faults, and notes without any."""

from __future__ import annotations

from pathlib import Path

SUPPORT = Path(__file__).with_name("support.jsonl")
FREE_TEXT = Path(__file__).with_name("free_text.jsonl")
# Six days of requests to a model of the first, the last three with a kind that it does not know.
WEEK = Path(__file__).with_name("week.jsonl")
SAMPLES = {f"sample://{path.name}": path for path in (SUPPORT, FREE_TEXT)}
