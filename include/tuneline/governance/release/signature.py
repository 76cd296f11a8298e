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
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from tuneline.artifacts.governance import Manifest
from tuneline.artifacts.releases import MANIFEST_FILE
from tuneline.config import GovernanceConfig
from tuneline.config.governance import KeylessConfig
from tuneline.errors import UserError, first_line
from tuneline.governance.release import keyless
from tuneline.governance.release.keyless import Identity
from tuneline.store import CorruptObject, Store

SIGNATURE = "model.sig"
# The name of the format in the manifest.
FORMAT = "OpenSSF Model Signing 1.0, elliptic key"
# Files of a release are hashed one by one.
_HASH = "sha256"


def public_part(private_key: Path) -> dict[str, str]:
    """Return what a manifest says of its signature: the format, and a hash of the public key."""
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
    """Return what a manifest says of its signature; None if the release is not signed."""
    if governance.keyless is not None:
        return keyless.stated(governance.keyless, SIGNATURE)
    return public_part(Path(governance.signing_key)) if governance.signing_key else None


def sign(files: Mapping[str, Path], signer: Path | KeylessConfig, scratch: Path) -> Path:
    """Sign files as the folder in which they will lie.

    `files` are named as in the version's folder, the manifest included. A key is a PEM file on an
    elliptic curve, without a password.
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
    store: Store,
    prefix: str,
    manifest: Manifest,
    manifest_sha256: str,
    signer: Path | Identity | None,
) -> tuple[list[str], list[str]]:
    """Check the signature of a version: it has to cover the manifest and its files, nothing else.

    The files themselves are compared with the manifest by whoever reads them.

    The files themselves are compared with the manifest by whoever reads them; without a `signer`
    the signature stays unchecked. Returns differences, and what could not be compared.
    """
    there, uri = store.exists(f"{prefix}/{SIGNATURE}"), store.uri_of(f"{prefix}/{SIGNATURE}")
    if not there and (manifest.signature or signer):
        return [f"{uri} is missing: the release is not signed"], []
    said = manifest.signature or {}
    if signer is None:
        way = "the identity and its issuer" if "identity" in said else "the public key"
        return [], [f"{uri} was not checked: give {way}"] if there else []
    other, config = _verifier(signer, said)
    if other is not None:
        return [f"{uri} is {other}"], []
    try:
        signature = store.get_bytes(f"{prefix}/{SIGNATURE}")
    except CorruptObject as error:
        return [str(error)], []
    stated = {entry.name: f"{_HASH}:{entry.sha256}" for entry in manifest.files}
    stated[MANIFEST_FILE] = f"{_HASH}:{manifest_sha256}"
    return [
        f"{uri} does not sign this release: {why}" for why in _faults(config, signature, stated)
    ], []


def require_usable(signer: Path | Identity) -> None:
    """Refuse a signer by whom nothing can be verified here."""
    _verifier(signer, {})


def _verifier(signer: Path | Identity, said: Mapping[str, str]) -> tuple[str | None, Any]:
    """Return whose signature it is if the manifest names another signer, and how to verify it."""
    _library()
    if isinstance(signer, Identity):
        if (said.get("identity"), said.get("issuer")) != (signer.name, signer.issuer):
            return f"not by {signer}: the manifest names {_named(said)}", None
        return None, keyless.verifier_of(signer)
    if said.get("public_key_sha256") != _fingerprint_of(signer):
        return f"by another key than {signer}", None
    return None, _library("verifying").Config().use_elliptic_key_verifier(public_key=signer)


def _faults(config: Any, signature: bytes, stated: Mapping[str, str]) -> Iterator[str]:
    """Compare the files that a signature covers with those that it has to cover, by name."""
    try:
        covered = _covered(config, signature)
    # The library raises what its parsers raise.
    except Exception as error:
        yield first_line(error)
        return
    both = stated.keys() & covered.keys()
    for what, names in (
        ("it was made for other bytes of", {n for n in both if stated[n] != covered[n]}),
        ("it does not cover", stated.keys() - both),
        ("it covers, beyond the release,", covered.keys() - both),
    ):
        if names:
            yield f"{what} {', '.join(sorted(names))}"


class _Covered:
    """Takes over what a signature covers, where the library expects the hashes of a folder."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}

    def add_ignored_paths(self, **_: Any) -> None:
        """Leave nothing out that a signature would leave out."""

    def hash(self, *_: Any, **__: Any) -> _Covered:
        """Return what the library compares with the signature."""
        return self

    def __ne__(self, signed: Any) -> bool:
        self.files = {
            one.identifier: f"{one.digest.algorithm}:{one.digest.digest_hex}"
            for one in signed.resource_descriptors()
        }
        return False


def _covered(config: Any, signature: bytes) -> dict[str, str]:
    """Return the files that a signature covers: algorithm and hash by name."""
    found = _Covered()
    with tempfile.TemporaryDirectory(prefix="tuneline-") as scratch:
        path = Path(scratch) / SIGNATURE
        path.write_bytes(signature)
        config.set_hashing_config(found).verify(path.parent, path)
    return found.files


def envelope_fault(raw: bytes, public_key: Path) -> str | None:
    """Return why a DSSE envelope is not signed by a key; None if it is."""
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
    """Import a module of the library."""
    import importlib

    try:
        return importlib.import_module(f"model_signing.{module}")
    except ModuleNotFoundError as error:
        raise UserError(
            f"a signature needs the library model-signing ({error}); install it: "
            "pip install -r requirements/signing.txt"
        ) from None
