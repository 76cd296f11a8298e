"""Sign a release by OpenSSF Model Signing, check the signature, and sign statements by DSSE.

The signature covers every file of the version's folder, its manifest included, in the format of
https://github.com/ossf/model-signing-spec (a Sigstore bundle). It is made with a key on an
elliptic curve, which needs no network. Statements are signed by the same key, in envelopes of
https://github.com/secure-systems-lab/dsse. The libraries are optional: `requirements/signing.txt`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuneline.artifacts.governance import Manifest
from tuneline.artifacts.releases import MANIFEST_FILE
from tuneline.config import GovernanceConfig
from tuneline.errors import UserError, first_line
from tuneline.store import CorruptObject, NotThere, Store

SIGNATURE = "model.sig"
# The name of the format in the manifest.
_FORMAT = "OpenSSF Model Signing 1.0, elliptic key"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
# Files of a release are hashed one by one.
_HASH = "sha256"
_OPENSSL = "openssl ecparam -name prime256v1 -genkey -noout"


def stated(governance: GovernanceConfig) -> dict[str, str] | None:
    """Return what a manifest says of its signature; None if the release is not signed."""
    return public_part(Path(governance.signing_key)) if governance.signing_key else None


def public_part(private_key: Path) -> dict[str, str]:
    """Return what a manifest says of a signature by a key, with the hash of the public key."""
    key = _private(private_key)
    form = {"format": _FORMAT, "file": SIGNATURE}
    return {**form, "public_key_sha256": _fingerprint(key.public_key())}


def sign(files: Mapping[str, Path], private_key: Path, scratch: Path) -> Path:
    """Sign files as the folder in which they will lie; return the signature.

    `files` are named as in the version's folder, the manifest included. A key is a PEM file on an
    elliptic curve, without a password.
    """
    signing = _library("model_signing.signing")
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
    with _key_errors("governance.signing_key", private_key):
        signing.Config().use_elliptic_key_signer(private_key=private_key).sign(folder, signature)
    return signature


def signature_difference(
    store: Store, prefix: str, manifest: Manifest, manifest_sha256: str, public_key: Path | None
) -> tuple[list[str], list[str]]:
    """Check the signature of a version: it has to cover the manifest and its files, nothing else.

    The files themselves are compared with the manifest by whoever reads them; without a
    `public_key` the signature stays unchecked. Returns differences, and what could not be compared.
    """
    there, uri = store.exists(f"{prefix}/{SIGNATURE}"), store.uri_of(f"{prefix}/{SIGNATURE}")
    if not there and (manifest.signature or public_key):
        return [f"{uri} is missing: the release is not signed"], []
    if public_key is None:
        return [], [f"{uri} was not checked: give the public key"] if there else []
    if (manifest.signature or {}).get("public_key_sha256") != _fingerprint(_public(public_key)):
        return [f"{uri} is by another key than {public_key}"], []
    config = _verifier(public_key)
    try:
        signature = store.get_bytes(f"{prefix}/{SIGNATURE}")
    except CorruptObject as error:
        return [str(error)], []
    stated = {entry.name: f"{_HASH}:{entry.sha256}" for entry in manifest.files}
    stated[MANIFEST_FILE] = f"{_HASH}:{manifest_sha256}"
    faults = _faults(config, signature, stated)
    return [f"{uri} does not sign this release: {why}" for why in faults], []


def require_usable(public_key: Path) -> None:
    """Refuse a key by which nothing can be verified here."""
    _public(public_key)
    _verifier(public_key)


def _verifier(public_key: Path) -> Any:
    verifying = _library("model_signing.verifying")
    return verifying.Config().use_elliptic_key_verifier(public_key=public_key)


def _faults(config: Any, signature: bytes, stated: Mapping[str, str]) -> Iterator[str]:
    """Compare the files that a signature covers with those that it has to cover, by name."""
    found = _Covered()
    try:
        with tempfile.TemporaryDirectory(prefix="tuneline-") as scratch:
            path = Path(scratch) / SIGNATURE
            path.write_bytes(signature)
            config.set_hashing_config(found).verify(path.parent, path)
    # The library raises what its parsers raise.
    except Exception as error:
        yield first_line(error)
        return
    covered = found.files
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
        self.files: dict[str, str] = {}  # algorithm and hash by name

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


def plain(statement: dict[str, Any]) -> bytes:
    """Return the bytes of a statement."""
    return json.dumps(statement, indent=1, ensure_ascii=False, sort_keys=True).encode()


def enveloped(payload: bytes, private_key: Path) -> bytes:
    """Return a statement in an envelope."""
    dsse, signers = _library("securesystemslib.dsse"), _library("securesystemslib.signer")
    with _key_errors("governance.signing_key", private_key):
        signer = signers.CryptoSigner(_private(private_key))
    envelope = dsse.Envelope(payload, _PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return json.dumps(envelope.to_dict(), indent=1).encode()


def kept_or_signed(store: Store, key: str, payload: bytes, private_key: Path) -> bytes:
    """Return the envelope that an earlier try has stored below `key`, otherwise sign.

    A signature by an elliptic curve has other bytes each time, and files of a release are written
    once.
    """
    dsse = _library("securesystemslib.dsse")
    try:
        stored = store.get_bytes(key)
    except NotThere:
        return enveloped(payload, private_key)
    same = dsse.Envelope.from_dict(json.loads(stored)).payload == payload
    return stored if same else enveloped(payload, private_key)


def envelope_fault(raw: bytes, public_key: Path) -> str | None:
    """Return why a DSSE envelope is not signed by a key; None if it is."""
    dsse, signers = _library("securesystemslib.dsse"), _library("securesystemslib.signer")
    key = signers.SSlibKey.from_crypto(_public(public_key))
    try:
        dsse.Envelope.from_dict(json.loads(raw)).verify([key], 1)
    # The library raises what its parsers raise.
    except Exception as error:
        return first_line(error)
    return None


def _private(path: Path) -> Any:
    serialization = _library("cryptography.hazmat.primitives.serialization")
    _library("model_signing.signing")
    with _key_errors("governance.signing_key", path):
        return serialization.load_pem_private_key(path.read_bytes(), password=None)


def _public(path: Path) -> Any:
    serialization = _library("cryptography.hazmat.primitives.serialization")
    with _key_errors("the public key", path):
        return serialization.load_pem_public_key(path.read_bytes())


def _fingerprint(public_key: Any) -> str:
    from cryptography.hazmat.primitives import serialization

    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(public_key.public_bytes(serialization.Encoding.DER, form)).hexdigest()


@contextmanager
def _key_errors(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{what}: {path} can't be used: {first_line(error)}; use a PEM file of a key on an "
            f"elliptic curve ({_OPENSSL})"
        ) from None


def _library(module: str) -> Any:
    """Import a module of an optional library."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"a signature needs the library {module.partition('.')[0]} ({error}); install it: "
            "pip install -r requirements/signing.txt"
        ) from None
