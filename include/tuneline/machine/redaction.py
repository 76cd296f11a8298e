"""Take secrets out of a text that people will read, such as the message of an error."""

from __future__ import annotations

import os
import re

from tuneline.machine.secret_shapes import SECRET_SHAPES

MASK = "***"
# Variables whose values are secrets; Kubernetes secrets reach a step as such variables.
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|(?:^|_)(?:PAT|DSN|AUTH)$")
# Shorter values ("1", "true", a user's name) would mask harmless words.
_SHORTEST = 8
# The signature of an address that gives access to an object for an hour.
_SIGNED = re.compile(
    r"(?i)([?&](?:x-amz-[a-z-]+|sig|signature|token|key|api_key|password)=)[^&\s]+"
)
# A shape finds passwords that follow a user's name; here the name may be missing or the token.
_CREDENTIALS = re.compile(r"(?<=://)[^\s/@]+(?=@)")


def redact(text: str) -> str:
    """Return a text without secrets: values of secret variables, and what has a secret's shape.

    Args:
        text: the text.
    """
    for value in _secret_values():
        text = text.replace(value, MASK)
    text = _SIGNED.sub(rf"\1{MASK}", _CREDENTIALS.sub(MASK, text))
    for shape in SECRET_SHAPES:
        text = shape.pattern.sub(_masked, text)
    return text


def _secret_values() -> list[str]:
    """Return the values of this process's secret variables, long ones first."""
    found = {
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name.upper()) and len(value) >= _SHORTEST
    }
    # A file that holds a secret is none, and its path helps whoever reads the error.
    return sorted((v for v in found if not v.startswith(("/", "file:"))), key=len, reverse=True)


def _masked(found: re.Match[str]) -> str:
    """Mask the secret of a match: its first group, or all of it."""
    if found.re.groups == 0 or found.group(1) is None:
        return MASK
    start, end = found.span(1)
    whole, offset = found.group(0), found.start()
    return whole[: start - offset] + MASK + whole[end - offset :]
