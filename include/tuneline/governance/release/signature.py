"""Sign a release by OpenSSF Model Signing, and check the signature.

The signature covers every file of the version's folder, its manifest included, in the format of
https://github.com/ossf/model-signing-spec (a Sigstore bundle). It is made with a key on an
elliptic curve, which needs no network, or by an identity, see `keyless`. `model_signing verify`
checks it as `tuneline verify` does.
The library is optional: `requirements/signing.txt`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from tuneline.artifacts.governance import Manifest
from tuneline.artifacts.releases import MANIFEST_FILE
from tuneline.config import GovernanceConfig
from tuneline.config.keyless import KeylessConfig
from tuneline.errors import UserError, first_line
from tuneline.governance.release import keyless
from tuneline.governance.release.keyless import Identity
from tuneline.store import FileStore, Store

SIGNATURE = "model.sig"
# The name of the format in the manifest.
FORMAT = "OpenSSF Model Signing 1.0, elliptic key"
_OTHER_BYTES = re.compile(r"Hash mismatch for \\*'([^'\\]+)")


def public_part(private_key: Path) -> dict[str, str]:
    """Return what a manifest says of its signature: the format, and a hash of the public key.

    Raises:
        UserError: if the key can't be read, or the library is missing.
    """
    _library()
    from cryptography.hazmat.primitives import serialization

    try:
        key: Any = serialization.load_pem_private_key(private_key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise _refused("governance.signing_key", private_key, error) from None
    return {
        "format": FORMAT,
        "file": SIGNATURE,
        "public_key_sha256": _fingerprint(key.public_key()),
    }


def stated(governance: GovernanceConfig) -> dict[str, str] | None:
    """Return what a manifest says of its signature; None if the release is not signed.

    Raises:
        UserError: if the key can't be read, or the library is missing.
    """
    if governance.keyless is not None:
        return keyless.stated(governance.keyless, SIGNATURE)
    return public_part(Path(governance.signing_key)) if governance.signing_key else None


def sign(files: Mapping[str, Path], signer: Path | KeylessConfig, scratch: Path) -> Path:
    """Sign files as the folder in which they will lie.

    Args:
        files: local file by name in the version's folder, the manifest included.
        signer: PEM file of a key on an elliptic curve, without a password; or the identity.
        scratch: folder for the signature and for links to the files.

    Returns:
        The signature.

    Raises:
        UserError: if key or token can't be used, or the library is missing.
        RetryableError: if Sigstore can't be reached.
    """
    signing = _library("signing")
    folder = scratch / "to-sign"
    for name, path in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except OSError:
            # On another disk, or on one without links.
            shutil.copyfile(path, target)
    signature = scratch / SIGNATURE
    if isinstance(signer, KeylessConfig):
        keyless.sign_folder(folder, signature, signer)
        return signature
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=signer)
        config.sign(folder, signature)
    except (OSError, ValueError, TypeError) as error:
        raise _refused("governance.signing_key", signer, error) from None
    return signature


def signature_difference(
    store: Store, prefix: str, manifest: Manifest, signer: Path | Identity | None
) -> tuple[list[str], list[str]]:
    """Check the signature of a version.

    Args:
        store: the store.
        prefix: the version's folder.
        manifest: its manifest, which says whether it was signed.
        signer: the public key or the identity that it must be signed by, None to leave the
            signature unchecked.

    Returns:
        Differences, and what could not be compared; one sentence each.

    Raises:
        UserError: if the key can't be read, or the library is missing.
        RetryableError: if Sigstore can't be reached for an identity.
    """
    there, uri = store.exists(f"{prefix}/{SIGNATURE}"), store.uri_of(f"{prefix}/{SIGNATURE}")
    if not there and (manifest.signature or signer):
        return [f"{uri} is missing: the release is not signed"], []
    said = manifest.signature or {}
    if signer is None:
        way = "the identity and its issuer" if "identity" in said else "the public key"
        return [], [f"{uri} was not checked: give {way}"] if there else []
    config: Any
    if isinstance(signer, Identity):
        _library()
        if (said.get("identity"), said.get("issuer")) != (signer.name, signer.issuer):
            return [f"{uri} is not by {signer}: the manifest names {_named(said)}"], []
        config = keyless.verifier_of(signer)
    else:
        if said.get("public_key_sha256") != _fingerprint_of(signer):
            return [f"{uri} is by another key than {signer}"], []
        config = _library("verifying").Config().use_elliptic_key_verifier(public_key=signer)
    with tempfile.TemporaryDirectory(prefix="tuneline-") as scratch:
        folder = _folder(store, prefix, manifest, Path(scratch))
        try:
            config.set_ignore_unsigned_files(True).verify(folder, folder / SIGNATURE)
        # The library raises what its parsers raise.
        except Exception as error:
            return [f"{uri} does not sign this release: {_reason(error)}"], []
    return [], []


def envelope_fault(raw: bytes, public_key: Path) -> str | None:
    """Return why a DSSE envelope is not signed by a key; None if it is.

    Args:
        raw: the bytes of the envelope.
        public_key: PEM file of the key, which was read before.

    Raises:
        UserError: if the library is missing.
    """
    _library()
    import importlib

    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.dsse import Envelope

    # The package exports its key class and leaves it out of `__all__`, by which types are checked.
    signers: Any = importlib.import_module("securesystemslib.signer")
    key: Any = load_pem_public_key(public_key.read_bytes())
    try:
        Envelope.from_dict(json.loads(raw)).verify([signers.SSlibKey.from_crypto(key)], 1)
    # The library raises what its parsers raise.
    except Exception as error:
        return first_line(error)
    return None


def _named(signature: Mapping[str, str]) -> str:
    """Return whom a manifest names for its signature."""
    if "identity" in signature:
        return f"{signature['identity']} of {signature.get('issuer')}"
    return "a key" if signature else "nobody"


def _reason(error: Exception) -> str:
    """Return why a signature does not hold; the library prints hashes as Python writes bytes."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    names = _OTHER_BYTES.findall(text)
    return f"it was made for other bytes of {', '.join(names)}" if names else text


def _folder(store: Store, prefix: str, manifest: Manifest, scratch: Path) -> Path:
    """Return the version's folder on this machine; from a bucket it is fetched."""
    if isinstance(store, FileStore):
        return store.root / prefix
    for name in (MANIFEST_FILE, SIGNATURE, *(entry.name for entry in manifest.files)):
        store.get_file(f"{prefix}/{name}", scratch / name)
    return scratch


def _fingerprint_of(public_key: Path) -> str:
    _library()
    from cryptography.hazmat.primitives import serialization

    try:
        return _fingerprint(serialization.load_pem_public_key(public_key.read_bytes()))
    except (OSError, ValueError) as error:
        raise _refused("the public key", public_key, error) from None


def _fingerprint(public_key: Any) -> str:
    from cryptography.hazmat.primitives import serialization

    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(public_key.public_bytes(serialization.Encoding.DER, form)).hexdigest()


def _refused(what: str, path: Path, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(
        f"{what}: {path} can't be used: {reason}; use a PEM file of a key on an elliptic curve "
        "(openssl ecparam -name prime256v1 -genkey -noout)"
    )


def _library(module: str = "signing") -> ModuleType:
    """Import a module of the library.

    Raises:
        UserError: if it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(f"model_signing.{module}")
    except ModuleNotFoundError as error:
        raise UserError(
            f"a signature needs the library model-signing ({error}); install it: "
            "pip install -r requirements/signing.txt"
        ) from None
