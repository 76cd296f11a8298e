"""Define the shapes of secrets: keys, tokens and passwords."""

from __future__ import annotations

import re
from typing import NamedTuple


class SecretShape(NamedTuple):
    """A shape of an entity type.

    Attributes:
        entity: type of the secret.
        hints: strings of which the lower-case text must hold one; looking for them is about a
            hundred times faster than the pattern.
        pattern: pattern whose first group, if it has one, is the secret.
    """

    entity: str
    hints: tuple[str, ...]
    pattern: re.Pattern[str]


_NAMED_KEY = ("api", "access", "auth", "secret", "token")
_AWS_IDS = ("akia", "asia", "aroa", "aida")
_SHAPES: tuple[tuple[str, str | tuple[str, ...], str], ...] = (
    (
        "PRIVATE_KEY",
        "private key-----",
        r"(?s)-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
        r"(?:.*?-----END (?:[A-Z]+ )*PRIVATE KEY-----|.*)",
    ),
    ("AWS_ACCESS_KEY", _AWS_IDS, r"(?i)(?<![A-Za-z0-9])(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}\b"),
    (
        "AWS_ACCESS_KEY",
        ("aws", "secret"),
        r"(?i:aws|secret)\W[^\n]{0,40}?(?<![\w/+])([A-Za-z0-9/+]{40})(?![\w/+=])",
    ),
    (
        "API_KEY",
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat"),
        r"\b(?:gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_\w{22,255})",
    ),
    ("API_KEY", "glpat-", r"\bglpat-[\w-]{20,}"),
    ("API_KEY", "xox", r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
    ("API_KEY", "eyj", r"\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"),
    (
        "API_KEY",
        ("sk-", "sk_", "pk-", "pk_", "rk-", "rk_"),
        r"(?<![\w-])(?:sk|pk|rk)[-_](?:[A-Za-z0-9]{1,20}[-_]){0,4}[A-Za-z0-9]{16,}[\w-]*",
    ),
    ("API_KEY", "aiza", r"\bAIza[\w-]{35}"),
    (
        "API_KEY",
        ("hf_", "npm_", "pypi", "dop_v1", "shpat", "glsa", "hf-", "npm-"),
        r"\b(?:hf|npm|pypi|dop_v1|shpat|glsa)[_-][A-Za-z0-9_-]{20,}",
    ),
    ("API_KEY", "bearer ", r"(?i:\bbearer) ([\w.~+/-]{16,}=*)"),
    (
        "API_KEY",
        _NAMED_KEY,
        r"(?i:\b(?:api|access|auth|secret)[ _-]?(?:key|token)|\btoken)\b[\"']?(?: is)?\s?[:=]?"
        r"\s?[\"']?((?=[\w-]*\d)(?=[\w-]*[A-Za-z])[\w-]{16,})",
    ),
    (
        "PASSWORD",
        ("pass", "pwd", "pin code"),
        r"(?i:\b(?:password|passcode|passwd|pwd|passphrase|pass|pin code)\b)"
        r"(?i: is| was| should be| to)?\s?[:=]?\s?[\"']?"
        r"((?=\S*\d)(?=\S*[^\W\d])[^\s\"',;]{6,40})",
    ),
    (
        "PASSWORD",
        "://",
        r"(?i)(?<![a-z0-9+.-])[a-z][a-z0-9+.-]{1,20}://[^\s/:@]{1,99}:([^\s/@]{3,99})@",
    ),
)
# If two overlap, the earlier one in this list stays.
SECRETS = ("PRIVATE_KEY", "API_KEY", "AWS_ACCESS_KEY", "PASSWORD")
SECRET_SHAPES = tuple(
    SecretShape(entity, (hints,) if isinstance(hints, str) else hints, re.compile(pattern))
    for entity, hints, pattern in _SHAPES
)
