"""Sign a release by OpenSSF Model Signing, check the signature, and sign statements by DSSE.

The signature covers every file of the version's folder, its manifest included, in the format of
https://github.com/ossf/model-signing-spec (a Sigstore bundle). It is made with a key on an
elliptic curve, which needs no network, or by an identity: a token of an OpenID provider is
exchanged for a certificate that is valid for minutes (Fulcio), and the signature goes into a public
log (Rekor), https://docs.sigstore.dev/about/overview/. Statements are signed by a key alone, in
envelopes of https://github.com/secure-systems-lab/dsse. The libraries are optional:
`requirements/signing.txt`.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.artifacts.governance import Manifest
from tuneline.artifacts.releases import MANIFEST_FILE
from tuneline.config import GovernanceConfig
from tuneline.config.governance import KeylessConfig
from tuneline.errors import RetryableError, UserError, first_line
from tuneline.store import CorruptObject, NotThere, Store

SIGNATURE = "model.sig"
# The name of the format in the manifest, with the kind of the signer.
_FORMAT = "OpenSSF Model Signing 1.0, {}"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
# Files of a release are hashed one by one.
_HASH = "sha256"
# Characters of a token that are never shown; a reason that holds them is cut.
_MIN_TOKEN = 8
_OPENSSL = "openssl ecparam -name prime256v1 -genkey -noout"


@dataclass(frozen=True)
class Identity:
    """Who must have signed a release."""

    name: str  # an e-mail address, or the address of a workflow
    issuer: str  # address of the OpenID provider that vouches for it
    trust_config: Path | None = None  # None for the public instance

    @classmethod
    def of(cls, settings: KeylessConfig) -> Identity:
        """Return the identity that the settings name."""
        trust = Path(settings.trust_config) if settings.trust_config else None
        return cls(settings.identity, settings.issuer, trust)

    def __str__(self) -> str:
        """Return it for a person."""
        return f"{self.name} of {self.issuer}"


def stated(governance: GovernanceConfig) -> dict[str, str] | None:
    """Return what a manifest says of its signature; None if the release is not signed."""
    if (keyless := governance.keyless) is not None:
        signer = {"identity": keyless.identity, "issuer": keyless.issuer}
        return {"format": _FORMAT.format("Sigstore"), "file": SIGNATURE, **signer}
    return public_part(Path(governance.signing_key)) if governance.signing_key else None


def public_part(private_key: Path) -> dict[str, str]:
    """Return what a manifest says of a signature by a key, with the hash of the public key."""
    key = _private(private_key)
    form = {"format": _FORMAT.format("elliptic key"), "file": SIGNATURE}
    return {**form, "public_key_sha256": _fingerprint(key.public_key())}


def sign(files: Mapping[str, Path], signer: Path | KeylessConfig, scratch: Path) -> Path:
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
    if isinstance(signer, KeylessConfig):
        sign_by_identity(folder, signature, signer)
        return signature
    with _key_errors("governance.signing_key", signer):
        signing.Config().use_elliptic_key_signer(private_key=signer).sign(folder, signature)
    return signature


def sign_by_identity(folder: Path, signature: Path, settings: KeylessConfig) -> None:
    """Sign a folder, and verify the signature at once: by whom a token is shows only then."""
    from sigstore.errors import VerificationError

    signing = _library("model_signing.signing")
    token, identity = identity_token(settings), Identity.of(settings)
    with _sigstore_errors(token):
        config = signing.Config()
        config.use_sigstore_signer(identity_token=token, trust_config=identity.trust_config)
        config.sign(folder, signature)
    try:
        verifier_of(identity).verify(folder, signature)
    except (ValueError, VerificationError) as error:
        signature.unlink()
        raise UserError(
            f"governance.keyless: the token is not that of {identity}: {first_line(error)}"
        ) from None


def identity_token(settings: KeylessConfig) -> str:
    """Return the identity token: of the file, of the variable, or of the surroundings.

    It never opens a browser: nobody sits before a pod.
    """
    from sigstore.oidc import IdentityError, detect_credential

    if settings.token_file is not None:
        try:
            token = Path(settings.token_file).read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise UserError(f"governance.keyless.token_file: {first_line(error)}") from None
        if not token:
            raise UserError(f"governance.keyless.token_file: {settings.token_file} is empty")
        return token
    if token := os.environ.get(settings.token_env, "").strip():
        return token
    try:
        ambient = detect_credential()
    except IdentityError as error:
        raise RetryableError(
            f"the surroundings offer an identity token and did not hand it out: {first_line(error)}"
        ) from None
    if ambient is None:
        raise UserError(
            f"keyless signing needs an identity token: set {settings.token_env} in the pod of "
            "lineage or governance.keyless.token_file, or run where CI or a cloud offers one "
            "(GitHub Actions: permissions: id-token: write)"
        )
    return ambient


def signature_difference(
    store: Store,
    prefix: str,
    manifest: Manifest,
    manifest_sha256: str,
    signer: Path | Identity | None,
) -> tuple[list[str], list[str]]:
    """Check the signature of a version: it has to cover the manifest and its files, nothing else.

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
    faults = _faults(config, signature, stated)
    return [f"{uri} does not sign this release: {why}" for why in faults], []


def require_usable(signer: Path | Identity) -> None:
    """Refuse a signer by whom nothing can be verified here."""
    _verifier(signer, {})


def _verifier(signer: Path | Identity, said: Mapping[str, str]) -> tuple[str | None, Any]:
    """Return whose signature it is if the manifest names another signer, and how to verify it."""
    verifying = _library("model_signing.verifying")
    if isinstance(signer, Identity):
        if (said.get("identity"), said.get("issuer")) == (signer.name, signer.issuer):
            return None, verifier_of(signer)
        named = "a key" if said else "nobody"
        if "identity" in said:
            named = f"{said['identity']} of {said.get('issuer')}"
        return f"not by {signer}: the manifest names {named}", None
    if said.get("public_key_sha256") != _fingerprint(_public(signer)):
        return f"by another key than {signer}", None
    return None, verifying.Config().use_elliptic_key_verifier(public_key=signer)


def verifier_of(identity: Identity) -> Any:
    """Return the library's configuration that accepts signatures of an identity alone."""
    config = _library("model_signing.verifying").Config()
    with _sigstore_errors():
        config.use_sigstore_verifier(
            identity=identity.name, oidc_issuer=identity.issuer, trust_config=identity.trust_config
        )
    return config


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


@contextmanager
def _sigstore_errors(token: str = "") -> Iterator[None]:
    """Say what failed in one sentence, without the token."""
    from sigstore.oidc import ExpiredIdentity, IdentityError

    def reason(error: BaseException, empty: str = "") -> str:
        text = first_line(error) if str(error) or not empty else empty
        return text.replace(token, "…") if len(token) >= _MIN_TOKEN else text

    config = "governance.keyless.trust_config"
    try:
        yield
    except (IdentityError, ExpiredIdentity) as error:
        why = reason(error, "it has expired")
        raise UserError(f"the identity token can't be used: {why}") from None
    except FileNotFoundError as error:
        raise UserError(f"{config}: {first_line(error)}") from None
    except ValueError as error:
        raise UserError(
            f"{config}: it is not a client trust configuration: {reason(error)}"
        ) from None
    # Its clients raise what their transports raise, and wrap some of it without a message.
    except Exception as error:
        raise RetryableError(
            f"Sigstore can't be used: {reason(error.__cause__ or error)}; keyless signatures need "
            "a network, to verify them too"
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
