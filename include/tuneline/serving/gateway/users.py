"""The client's own user, as the ledger may keep it."""

from __future__ import annotations

import hashlib
from typing import Any, Literal, TypeAlias

# What the ledger keeps of the request's field `user`.
KeptUser: TypeAlias = Literal["hash", "plain", "none"]

_LONGEST = 64
_HASH_DIGITS = 16


def kept_user(user: Any, how: KeptUser) -> str:
    """Return what the ledger keeps of a user.

    Args:
        user: the field of a request; what is no text names nobody.
        how: `hash` keeps the first 16 hex digits of its SHA-256, so that the same user is one
            user in every sum and no e-mail address stands in the ledger. That is a pseudonym: who
            has a list of users can hash it too. `plain` keeps up to 64 printable characters.
    """
    if how == "none" or not isinstance(user, str) or not user:
        return ""
    if how == "hash":
        digest = hashlib.sha256(user.encode("utf-8", "surrogatepass")).hexdigest()
        return f"u-{digest[:_HASH_DIGITS]}"
    return "".join(c if c.isprintable() else "?" for c in user[:_LONGEST])
