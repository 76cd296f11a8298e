"""Signatures by an identity instead of a key: Sigstore through OpenSSF Model Signing.

A token of an OpenID provider is exchanged for a certificate that is valid for minutes (Fulcio), and
the signature goes into a public log (Rekor). Both, and the trust root, are reached over a network.
Whoever verifies names identity and provider. https://docs.sigstore.dev/about/overview/
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.config.governance import KeylessConfig
from tuneline.errors import RetryableError, UserError, first_line

# The name of the format in the manifest.
FORMAT = "OpenSSF Model Signing 1.0, Sigstore"
# Characters of a token that are never shown; a reason that holds them is cut.
_MIN_TOKEN = 8


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


def stated(settings: KeylessConfig, file: str) -> dict[str, str]:
    """Return what a manifest says of a signature by an identity."""
    found = {"format": FORMAT, "file": file}
    return {**found, "identity": settings.identity, "issuer": settings.issuer}


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


def sign_folder(folder: Path, signature: Path, settings: KeylessConfig) -> None:
    """Sign a folder, and verify the signature at once: by whom a token is shows only then."""
    from model_signing import signing

    token = identity_token(settings)
    trust = Path(settings.trust_config) if settings.trust_config else None
    with _plainly(token):
        config = signing.Config().use_sigstore_signer(identity_token=token, trust_config=trust)
        config.sign(folder, signature)
    identity = Identity.of(settings)
    try:
        verifier_of(identity).verify(folder, signature)
    except (ValueError, _verification_error()) as error:
        signature.unlink()
        raise UserError(
            f"governance.keyless: the token is not that of {identity}: {first_line(error)}"
        ) from None


def verifier_of(identity: Identity) -> Any:
    """Return the library's configuration that accepts signatures of an identity alone."""
    from model_signing import verifying

    config = verifying.Config()
    with _plainly():
        config.use_sigstore_verifier(
            identity=identity.name, oidc_issuer=identity.issuer, trust_config=identity.trust_config
        )
    return config


def _verification_error() -> type[Exception]:
    from sigstore.errors import VerificationError

    return VerificationError


@contextmanager
def _plainly(token: str = "") -> Iterator[None]:
    """Say what failed in one sentence, without the token."""
    from sigstore.oidc import ExpiredIdentity, IdentityError

    try:
        yield
    except (IdentityError, ExpiredIdentity) as error:
        reason = first_line(error) if str(error) else "it has expired"
        raise UserError(f"the identity token can't be used: {_without(token, reason)}") from None
    except FileNotFoundError as error:
        raise UserError(f"governance.keyless.trust_config: {first_line(error)}") from None
    except ValueError as error:
        raise UserError(
            f"governance.keyless.trust_config: it is not a client trust configuration: "
            f"{_without(token, first_line(error))}"
        ) from None
    # Its clients raise what their transports raise, and wrap some of it without a message.
    except Exception as error:
        reason = first_line(error.__cause__ or error)
        raise RetryableError(
            f"Sigstore can't be used: {_without(token, reason)}; keyless signatures need a "
            "network, to verify them too"
        ) from None


def _without(token: str, text: str) -> str:
    """Return a text without a token."""
    return text.replace(token, "…") if len(token) >= _MIN_TOKEN else text
