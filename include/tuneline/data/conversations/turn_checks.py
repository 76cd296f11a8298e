"""Check a row's turns: roles and their order, empty turns, injected tokens, broken Unicode.

Each check returns the reason to reject a row (`code: detail`), or None.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from tuneline.data.tables.rows import Message

ROLES = ("system", "user", "assistant")
# Markers of the common chat templates. No row may hold one, whatever the model's own tokenizer
# knows, since rows are reused for other models.
TEMPLATE_MARKERS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<start_of_turn>",
    "<end_of_turn>",
)
ALPACA_MARKERS = ("### Instruction:", "### Response:", "### Input:")

# C0 without tab and line ends, delete, C1, lone surrogates, non-characters, and the replacement
# character that a failed decoding leaves.
_BAD_CHARACTER = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffd\ufffe\uffff]"
    "|["
    + "".join(f"{chr(p * 0x10000 + 0xFFFE)}{chr(p * 0x10000 + 0xFFFF)}" for p in range(1, 17))
    + "]"
)
# UTF-8 read as Windows-1252: a lead byte of Latin letters (Ã, Â), of punctuation (â€) or of
# emoji (ðŸ), or two Cyrillic letters in a row (Ð, Ñ).
_MOJIBAKE = re.compile(
    "[ÂÃ][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
    "|â€[\u0080-\u00bf‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]?"
    "|ðŸ[\u0080-\u00bf‘’“”•–—˜™š›œžŸ€‚ƒ„…†‡ˆ‰Š‹ŒŽ]"
    "|(?:[ÐÑ][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]){2}"
)


def check_roles(messages: Sequence[Message]) -> str | None:
    """Check that roles are known and alternate, after an optional system turn."""
    roles = [message["role"] for message in messages]
    for number, role in enumerate(roles, 1):
        if role not in ROLES:
            return f"unknown_role: turn {number} has the role {role[:40]!r}"
    first = 2 if roles[:1] == ["system"] else 1
    if not roles[first - 1 :]:
        return "role_order: there is no user turn"
    for number, role in enumerate(roles[first - 1 :], first):
        expected = ("user", "assistant")[(number - first) % 2]
        if role != expected:
            return f"role_order: turn {number} is from {role}, expected {expected}"
    if roles[-1] != "assistant":
        return "no_answer: the last turn is not the assistant's"
    return None


def check_empty(messages: Sequence[Message]) -> str | None:
    """Check that no turn is empty, blank or made of invisible characters."""
    for number, message in enumerate(messages, 1):
        said = message["content"].strip()
        if all(unicodedata.category(c) in ("Cf", "Mn", "Zs") for c in said):
            return f"empty_turn: turn {number} ({message['role']}) is empty"
    return None


@lru_cache(maxsize=16)
def _marker_pattern(markers: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(m) for m in sorted(markers, key=len, reverse=True)))


def check_injection(messages: Sequence[Message], markers: tuple[str, ...]) -> str | None:
    """Check that no turn holds a special token or template marker, which would forge a turn."""
    pattern = _marker_pattern(markers)
    for number, message in enumerate(messages, 1):
        found = pattern.search(message["content"])
        if found:
            return f"special_token: turn {number} holds {found[0]!r}"
    return None


def check_unicode(messages: Sequence[Message]) -> str | None:
    """Check for lone surrogates, control characters, non-characters and mojibake."""
    for number, message in enumerate(messages, 1):
        content = message["content"]
        # Printable ASCII, which most turns are, needs no search.
        plain = content.isascii() and content.isprintable()
        bad = None if plain else _BAD_CHARACTER.search(content)
        if bad:
            return f"bad_character: turn {number} holds U+{ord(bad[0]):04X}"
        if not content.isascii():
            garbled = _MOJIBAKE.search(content)
            if garbled:
                return f"mojibake: turn {number} holds {garbled[0]!r}, UTF-8 read as Latin"
    return None


def check_turns(messages: Sequence[Message], markers: tuple[str, ...]) -> str | None:
    """Return the reason why a row's turns can't be trained on, None if they can."""
    return (
        check_roles(messages)
        or check_unicode(messages)
        or check_empty(messages)
        or check_injection(messages, markers)
    )
