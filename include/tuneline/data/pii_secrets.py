"""Secrets by their shape: keys, tokens and passwords."""

from __future__ import annotations

import re

# By entity type; the first group, where a shape has one, is the secret.
_SHAPES: dict[str, tuple[str, ...]] = {
    "PRIVATE_KEY": (
        r"(?s)-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
        r"(?:.*?-----END (?:[A-Z]+ )*PRIVATE KEY-----|.*)",
    ),
    "AWS_ACCESS_KEY": (
        r"(?i)(?<![A-Za-z0-9])(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}\b",
        r"(?i:aws|secret)\W[^\n]{0,40}?(?<![\w/+])([A-Za-z0-9/+]{40})(?![\w/+=])",
    ),
    "API_KEY": (
        r"\b(?:gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_\w{22,255})",
        r"\bglpat-[\w-]{20,}",
        r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
        r"\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?",
        r"(?<![\w-])(?:sk|pk|rk)[-_](?:[A-Za-z0-9]{1,20}[-_]){0,4}[A-Za-z0-9]{16,}[\w-]*",
        r"\bAIza[\w-]{35}",
        r"\b(?:hf|npm|pypi|dop_v1|shpat|glsa)[_-][A-Za-z0-9_-]{20,}",
        r"(?i:\bbearer) ([\w.~+/-]{16,}=*)",
        r"(?i:\b(?:api|access|auth|secret)[ _-]?(?:key|token)|\btoken)\b[\"']?(?: is)?\s?[:=]?"
        r"\s?[\"']?((?=[\w-]*\d)(?=[\w-]*[A-Za-z])[\w-]{16,})",
    ),
    "PASSWORD": (
        r"(?i:\b(?:password|passwd|pwd|passphrase|pin code)\b)(?i: is| was)?\s?[:=]?\s?[\"']?"
        r"((?=\S*\d)(?=\S*[^\W\d])[^\s\"',;]{6,40})",
        r"(?i)(?<![a-z0-9+.-])[a-z][a-z0-9+.-]{1,20}://[^\s/:@]{1,99}:([^\s/@]{3,99})@",
    ),
}
# Where two overlap, the one further up stays.
SECRETS = ("PRIVATE_KEY", "API_KEY", "AWS_ACCESS_KEY", "PASSWORD")
SECRET_PATTERNS = tuple(
    (entity, re.compile(shape)) for entity, shapes in _SHAPES.items() for shape in shapes
)
# A text without any of these holds none of them.
SECRET_HINT = re.compile(
    r"PRIVATE KEY|akia|asia|aroa|aida|aws|secret|gh[pousr]_|github_pat|glpat|xox|eyJ|[sprk]k[-_]|"
    r"AIza|hf_|npm_|pypi-|dop_v1|shpat|glsa|bearer|token|key|passw|pwd|passphrase|pin code|://",
    re.IGNORECASE,
)
