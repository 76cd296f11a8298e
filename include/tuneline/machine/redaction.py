"""Take secrets out of a text that people will read, such as the message of an error."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tuneline.machine.linear_pattern import LinearPattern

Span = tuple[int, int]
# The characters after a cue that its pattern sees: a few words and a password of 40 characters.
_REACH = 64


class _Shape(NamedTuple):
    """A shape of an entity type.

    Attributes:
        hints: strings of which the lower-case text must hold one; looking for them is about a
            hundred times faster than the pattern.
        pattern: pattern whose first group, if it has one, is the secret.
        cue: pattern of the words right before it, which may be a part of another secret.
        valid: True if the characters from a start to an end of a text can be a secret.
    """

    entity: str
    hints: tuple[str, ...]
    pattern: LinearPattern
    cue: LinearPattern | None = None
    valid: Callable[[str, int, int], bool] | None = None

    def spans(self, text: str) -> Iterator[Span]:
        """Yield the secrets of a text: characters start to end."""
        found = self.pattern.spans(text) if self.cue is None else self._after_cues(text, self.cue)
        for start, end in found:
            if self.valid is None or self.valid(text, start, end):
                yield start, end

    def _after_cues(self, text: str, cue: LinearPattern) -> Iterator[Span]:
        for match in cue.finditer(text):
            after = match.end()
            secret = self.pattern.match(text[after : after + _REACH])
            if secret is not None:
                yield after + secret.start(1), after + secret.end(1)


def _shape(
    entity: str,
    hints: str,
    pattern: str,
    cue: str | None = None,
    valid: Callable[[str, int, int], bool] | None = None,
) -> _Shape:
    named = None if cue is None else LinearPattern(cue)
    return _Shape(entity, tuple(hints.split("|")), LinearPattern(pattern), named, valid)


def _is_mixed(text: str, start: int, end: int) -> bool:
    """Return True if a key holds a digit and a letter."""
    key = text[start:end]
    return any(map(str.isdigit, key)) and any(map(str.isalpha, key))


def _is_mixed_word(text: str, start: int, _: int) -> bool:
    """Return True if the word that a password begins holds a digit and a letter or underscore."""
    word = text[start : start + _REACH].split(maxsplit=1)[0]
    return _is_mixed(word.replace("_", "a"), 0, len(word))


# fmt: off
_SHAPES = (
    _shape("PRIVATE_KEY", "private key-----",
           r"(?s)-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
           r"(?:.*?-----END (?:[A-Z]+ )*PRIVATE KEY-----|.*)"),
    _shape("AWS_ACCESS_KEY", "akia|asia|aroa|aida",
           r"(?i)(?:^|[^A-Z0-9])((?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16})\b"),
    _shape("AWS_ACCESS_KEY", "aws|secret",
           r"(?i:aws|secret)(?:[^\w/+]|\W[^\n]{0,39}?[^\w/+\n])([A-Za-z0-9/+]{40})(?:$|[^\w/+=])"),
    _shape("API_KEY", "ghp_|gho_|ghu_|ghs_|ghr_|github_pat",
           r"\b(?:gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_\w{22,255})"),
    _shape("API_KEY", "glpat-", r"\bglpat-[\w-]{20,}"),
    _shape("API_KEY", "xox", r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
    _shape("API_KEY", "eyj", r"\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"),
    _shape("API_KEY", "sk-|sk_|pk-|pk_|rk-|rk_",
           r"(?:^|[^\w-])((?:sk|pk|rk)[-_](?:[A-Za-z0-9]{1,20}[-_]){0,4}[A-Za-z0-9]{16,}[\w-]*)"),
    _shape("API_KEY", "aiza", r"\bAIza[\w-]{35}"),
    _shape("API_KEY", "hf_|npm_|pypi|dop_v1|shpat|glsa|hf-|npm-",
           r"\b(?:hf|npm|pypi|dop_v1|shpat|glsa)[_-][A-Za-z0-9_-]{20,}"),
    _shape("API_KEY", "bearer ", r"(?i:\bbearer) ([\w.~+/-]{16,}=*)"),
    _shape("API_KEY", "api|access|auth|secret|token",
           r"(?i:\b(?:api|access|auth|secret)[ _-]?(?:key|token)|\btoken)\b[\"']?(?: is)?\s?[:=]?"
           r"\s?[\"']?([\w-]{16,})", valid=_is_mixed),
    _shape("PASSWORD", "pass|pwd|pin code",
           r"(?i: is| was| should be| to)?\s?[:=]?\s?[\"']?([^\s\"',;]{6,40})",
           cue=r"(?i)\b(?:password|passcode|passwd|pwd|passphrase|pass|pin code)\b",
           valid=_is_mixed_word),
    _shape("PASSWORD", "://", r"(?i)[a-z][a-z0-9+.-]{1,20}://[^\s/:@]{1,99}:([^\s/@]{3,99})@"),
)
# fmt: on
# If two overlap, the earlier one in this list stays.
SECRETS = ("PRIVATE_KEY", "API_KEY", "AWS_ACCESS_KEY", "PASSWORD")


def find_secrets(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield the secrets of a text: start, end and entity. They may overlap."""
    lowered = text.lower()
    for shape in _SHAPES:
        if any(hint in lowered for hint in shape.hints):
            for start, end in shape.spans(text):
                yield start, end, shape.entity


MASK = "***"
# Variables whose values are secrets; Kubernetes secrets reach a step as such variables.
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|(?:^|_)(?:PAT|DSN|AUTH)$")
# Shorter values ("1", "true", a user's name) would mask harmless words.
_SHORTEST = 8
# The signature of an address that gives access to an object for an hour.
_SIGNED = LinearPattern(
    r"(?i)([?&](?:x-amz-[a-z-]+|sig|signature|token|key|api_key|password)=)[^&\s]+"
)
# A shape finds passwords that follow a user's name; here the name may be missing or the token.
_CREDENTIALS = LinearPattern(r"(://)[^\s/@]+@")


def redact(text: str) -> str:
    """Return a text without secrets: values of secret variables, and what has a secret's shape."""
    for value in _secret_values():
        text = text.replace(value, MASK)
    text = _SIGNED.sub(rf"\1{MASK}", _CREDENTIALS.sub(rf"\1{MASK}@", text))
    parts, at = [], 0
    for start, end, _ in sorted(find_secrets(text)):
        if start >= at:
            parts += [text[at:start], MASK]
        at = max(at, end)
    return "".join([*parts, text[at:]])


def _secret_values() -> list[str]:
    """Return the values of this process's secret variables, long ones first."""
    found = {
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name.upper()) and len(value) >= _SHORTEST
    }
    # A file that holds a secret is none, and its path helps whoever reads the error.
    return sorted((v for v in found if not v.startswith(("/", "file:"))), key=len, reverse=True)
