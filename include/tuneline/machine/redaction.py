"""Take secrets out of a text that people will read, such as the message of an error."""

from __future__ import annotations

import os
import re

from tuneline.machine.linear_pattern import LinearPattern
from tuneline.machine.secret_shapes import find_secrets

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
    """Return a text without secrets: values of secret variables, and what has a secret's shape.

    Args:
        text: the text.
    """
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
