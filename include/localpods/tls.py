"""The server's certificate and the kubeconfig that makes clients trust it.

kubectl sends a bearer token over TLS only. The certificate is signed by an authority that is
created with it and whose key is discarded: clients trust this one certificate and no other. It
is kept in the state folder, so that clients stay connected over a restart of the server.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from localpods.objects import LOOPBACK
from localpods.state import StateDir, write_private

_VALID = datetime.timedelta(days=3650)
# A certificate that ends sooner than this is replaced at the start of the server.
_RENEWED_BEFORE = datetime.timedelta(days=365)
_BEGIN = "-----BEGIN CERTIFICATE-----"
_ISSUER = "localpods authority"
_USAGES = (
    "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
    "key_cert_sign crl_sign encipher_only decipher_only"
).split()


def server_context(state: StateDir) -> ssl.SSLContext:
    """Return the TLS context of the server; its certificate is created if there is none."""
    if not _is_valid(state):
        write_private(state.certificate, _create())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(state.certificate)
    return context


def write_kubeconfig(state: StateDir, port: int) -> None:
    """Write the kubeconfig that clients connect with; JSON is valid YAML."""
    cluster = {
        "server": f"https://{LOOPBACK}:{port}",
        "certificate-authority-data": base64.b64encode(_authority(state)).decode(),
    }
    name = "localpods"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": {"token": state.token()}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
    }
    write_private(state.kubeconfig, json.dumps(config))


def _authority(state: StateDir) -> bytes:
    text = state.certificate.read_text(encoding="ascii")
    return text[text.rindex(_BEGIN) :].encode()


def _is_valid(state: StateDir) -> bool:
    try:
        end = x509.load_pem_x509_certificate(_authority(state)).not_valid_after_utc
    except (OSError, ValueError):
        return False
    return end - datetime.datetime.now(datetime.UTC) > _RENEWED_BEFORE


def _create() -> str:
    """Return a private key, its certificate and the certificate's authority, as PEM."""
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    names = [x509.IPAddress(ipaddress.ip_address(LOOPBACK)), x509.DNSName("localhost")]
    authority = (
        _unsigned(_ISSUER, authority_key, "key_cert_sign", "crl_sign")
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    certificate = (
        _unsigned("localpods", key, "digital_signature")
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return b"".join([private, certificate.public_bytes(pem), authority.public_bytes(pem)]).decode()


def _unsigned(name: str, key: ec.EllipticCurvePrivateKey, *usages: str) -> x509.CertificateBuilder:
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _ISSUER)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + _VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.KeyUsage(**{u: u in usages for u in _USAGES}), critical=True)
    )
