"""Statements as files: as they are, or in a DSSE envelope by the key that signs releases.

https://github.com/secure-systems-lab/dsse, by securesystemslib (`requirements/signing.txt`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tuneline.errors import UserError
from tuneline.store import NotThere, Store

PAYLOAD_TYPE = "application/vnd.in-toto+json"


def plain(statement: dict[str, Any]) -> bytes:
    """Return the bytes of a statement."""
    return json.dumps(statement, indent=1, ensure_ascii=False, sort_keys=True).encode()


def signed(payload: bytes, private_key: Path) -> bytes:
    """Return a statement in an envelope."""
    try:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
        from securesystemslib.dsse import Envelope
        from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]  # exported, but not in __all__
    except ModuleNotFoundError as error:
        raise UserError(
            f"signed statements need securesystemslib ({error}); install it: "
            "pip install -r requirements/signing.txt"
        ) from None
    try:
        key: Any = load_pem_private_key(private_key.read_bytes(), password=None)
        signer = CryptoSigner(key)
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"governance.signing_key: {private_key} can't sign statements: {reason}; use a PEM "
            "file of a key on an elliptic curve "
            "(openssl ecparam -name prime256v1 -genkey -noout)"
        ) from None
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return json.dumps(envelope.to_dict(), indent=1).encode()


def kept_or_signed(store: Store, key: str, payload: bytes, private_key: Path) -> bytes:
    """Return the envelope that an earlier try has stored, otherwise sign.

    A signature by an elliptic curve has other bytes each time, and files of a release are
    written once.
    """
    from securesystemslib.dsse import Envelope

    try:
        stored = store.get_bytes(key)
    except NotThere:
        return signed(payload, private_key)
    same = Envelope.from_dict(json.loads(stored)).payload == payload
    return stored if same else signed(payload, private_key)
