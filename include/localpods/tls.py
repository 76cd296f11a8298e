"""The server's certificate and the kubeconfig that carries its trust to clients.

kubectl sends a bearer token over TLS only. The certificate is signed by an authority that is
created with it and whose key is thrown away: clients trust this one certificate and no other. It
is kept in the state folder, so that clients stay connected over a restart of the server.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from localpods.objects import LOOPBACK
from localpods.state import StateDir, write_json, write_private

_VALID = datetime.timedelta(days=3650)
# A certificate that ends sooner than this is replaced at the start of the server.
_RENEWED_BEFORE = datetime.timedelta(days=365)
_BEGIN = "-----BEGIN CERTIFICATE-----"


def server_context(state: StateDir) -> ssl.SSLContext:
    """Return the TLS context of the server; its certificate is created if there is none."""
    if not _is_valid(state):
        write_private(state.certificate, _create())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(state.certificate)
    return context


def authority(state: StateDir) -> str:
    """Return the certificate that clients verify the server with, as PEM."""
    text = state.certificate.read_text(encoding="ascii")
    return text[text.rindex(_BEGIN) :]


def write_kubeconfig(state: StateDir, port: int) -> None:
    """Write the kubeconfig that clients connect with; JSON is valid YAML."""
    cluster = {
        "server": f"https://{LOOPBACK}:{port}",
        "certificate-authority-data": base64.b64encode(authority(state).encode()).decode(),
    }
    name = "localpods"
    write_json(
        state.kubeconfig,
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": name, "user": {"token": state.token()}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        },
    )


def _is_valid(state: StateDir) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(authority(state).encode())
    except (OSError, ValueError):
        return False
    return certificate.not_valid_after_utc - _now() > _RENEWED_BEFORE


def _create() -> str:
    """Return a private key, its certificate and the certificate's authority, as PEM."""
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority_id = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_id)
    names = [x509.IPAddress(ipaddress.ip_address(LOOPBACK)), x509.DNSName("localhost")]
    issuer = (
        _builder("localpods authority", authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    server = (
        _builder("localpods", key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(issuer_id, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    certificates = [c.public_bytes(serialization.Encoding.PEM) for c in (server, issuer)]
    return b"".join([private, *certificates]).decode()


def _builder(name: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    def subject(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    start = _now() - datetime.timedelta(days=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject(name))
        .issuer_name(subject("localpods authority"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + _VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
