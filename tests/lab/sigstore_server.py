"""A Sigstore instance on this machine: what Fulcio, Rekor and an OpenID provider answer.

Written from their specifications, with keys of its own: certificates with an embedded timestamp of
a certificate log (RFC 6962), and a log of one leaf whose entries carry inclusion proof, checkpoint
and promise. sigstore-python checks all of it. https://github.com/sigstore/architecture-docs
"""

import base64
import hashlib
import json
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

ISSUER_OID = ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
SCT_LIST_OID = ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
SECRET = "the provider's own secret, 32 bytes"
_SHA256 = ec.ECDSA(hashes.SHA256())


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def der(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.DER, form)


def key_id(key: ec.EllipticCurvePrivateKey) -> bytes:
    return hashlib.sha256(der(key)).digest()


class SigstoreServer:
    """An instance with its keys."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.issuer = f"{url}/oidc"
        self.entries: list[dict[str, Any]] = []
        self._ca, self._ct, self._log = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        self.root = self._make_root()

    def token(self, identity: str, **claims: Any) -> str:
        """Return a token of the provider for an identity."""
        now = int(time.time())
        stated = {"iss": self.issuer, "aud": "sigstore", "sub": identity}
        return jwt.encode({**stated, "iat": now, "exp": now + 600, **claims}, SECRET)

    def trust_config(self, path: Path) -> Path:
        """Write what a client has to know of the instance."""
        since = {"start": "2020-01-01T00:00:00Z"}

        def log(key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
            public = {"rawBytes": b64(der(key)), "keyDetails": "PKIX_ECDSA_P256_SHA_256"}
            return {
                "baseUrl": self.url,
                "hashAlgorithm": "SHA2_256",
                "publicKey": {**public, "validFor": since},
                "logId": {"keyId": b64(key_id(key))},
            }

        root = self.root.public_bytes(serialization.Encoding.DER)
        authority = {
            "subject": {"organization": "lab", "commonName": "lab"},
            "uri": self.url,
            "certChain": {"certificates": [{"rawBytes": b64(root)}]},
            "validFor": since,
        }

        def service(url: str) -> list[dict[str, Any]]:
            return [{"url": url, "majorApiVersion": 1, "validFor": since, "operator": "lab"}]

        document = {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [log(self._log)],
                "certificateAuthorities": [authority],
                "ctlogs": [log(self._ct)],
                "timestampAuthorities": [],
            },
            "signingConfig": {
                "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
                "caUrls": service(self.url),
                "oidcUrls": service(self.issuer),
                "rekorTlogUrls": service(self.url),
                "tsaUrls": [],
                "rekorTlogConfig": {"selector": "ANY"},
                "tsaConfig": {"selector": "ANY"},
            },
        }
        path.write_text(json.dumps(document))
        return path

    def _make_root(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lab")])
        now = datetime.now(UTC)
        usage = {name: name in ("key_cert_sign", "crl_sign") for name in _USAGES}
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._ca.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self._ca.public_key()), critical=False
            )
            .sign(self._ca, hashes.SHA256())
        )

    def certify(self, authorization: str, request: dict[str, Any]) -> dict[str, Any]:
        """Answer as Fulcio: a certificate for the identity of a token, and its chain."""
        raw = authorization.removeprefix("Bearer ")
        claims = jwt.decode(raw, SECRET, algorithms=["HS256"], audience="sigstore")
        pem = base64.b64decode(request["certificateSigningRequest"])
        wanted = x509.load_pem_x509_csr(pem)
        assert wanted.is_signature_valid
        leaf = self._leaf(wanted, claims)
        chain = [c.public_bytes(serialization.Encoding.PEM).decode() for c in (leaf, self.root)]
        return {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}}

    def _leaf(self, wanted: Any, claims: dict[str, Any]) -> x509.Certificate:
        now = datetime.now(UTC)
        usage = {name: name == "digital_signature" for name in _USAGES}
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._ca.public_key())
        subject = x509.UniformResourceIdentifier(claims["sub"])
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.root.subject)
            .public_key(wanted.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(minutes=10))
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False
            )
            .add_extension(authority, critical=False)
            .add_extension(x509.SubjectAlternativeName([subject]), critical=True)
            .add_extension(
                x509.UnrecognizedExtension(ISSUER_OID, claims["iss"].encode()), critical=False
            )
        )
        before = builder.sign(self._ca, hashes.SHA256())
        scts = self._timestamps(before.tbs_certificate_bytes)
        listed = x509.UnrecognizedExtension(SCT_LIST_OID, scts)
        return builder.add_extension(listed, critical=False).sign(self._ca, hashes.SHA256())

    def _timestamps(self, tbs: bytes) -> bytes:
        """Return the list of one signed certificate timestamp, by RFC 6962."""
        at = int(time.time() * 1000)
        entry = struct.pack("!H", 1) + key_id(self._ca) + struct.pack("!I", len(tbs))[1:] + tbs
        signature = self._ct.sign(struct.pack("!BBQ", 0, 0, at) + entry + b"\0\0", _SHA256)
        head = struct.pack("!B32sQHBBH", 0, key_id(self._ct), at, 0, 4, 3, len(signature))
        one = struct.pack("!H", len(head + signature)) + head + signature
        listed = struct.pack("!H", len(one)) + one
        # An OCTET STRING of DER; its length fits one byte.
        assert len(listed) < 128
        return b"\x04" + bytes([len(listed)]) + listed

    def log(self, proposed: dict[str, Any]) -> dict[str, Any]:
        """Answer as Rekor: an entry for an envelope, in a log that holds nothing else."""
        assert (proposed["kind"], proposed["apiVersion"]) == ("dsse", "0.0.1")
        content = proposed["spec"]["proposedContent"]
        envelope = json.loads(content["envelope"])
        payload = base64.b64decode(envelope["payload"])

        def digest(data: bytes) -> dict[str, str]:
            return {"algorithm": "sha256", "value": hashlib.sha256(data).hexdigest()}

        (verifier,) = content["verifiers"]
        signatures = [{"signature": s["sig"], "verifier": verifier} for s in envelope["signatures"]]
        spec = {
            "envelopeHash": digest(content["envelope"].encode()),
            "payloadHash": digest(payload),
            "signatures": signatures,
        }
        body = canonical({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})
        # The root of a tree of one leaf is that leaf.
        root = hashlib.sha256(b"\0" + body).digest()
        note = f"lab - 1\n1\n{b64(root)}\n"
        signed = b64(key_id(self._log)[:4] + self._log.sign(note.encode(), _SHA256))
        entry = {
            "body": b64(body),
            "integratedTime": int(time.time()),
            "logID": key_id(self._log).hex(),
            "logIndex": 0,
        }
        proof = {
            "checkpoint": f"{note}\n— lab {signed}\n",
            "hashes": [],
            "logIndex": 0,
            "rootHash": root.hex(),
            "treeSize": 1,
        }
        promise = b64(self._log.sign(canonical(entry), _SHA256))
        found = {
            **entry,
            "verification": {"inclusionProof": proof, "signedEntryTimestamp": promise},
        }
        self.entries.append(found)
        return {hashlib.sha256(body).hexdigest(): found}


_USAGES = (
    "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
    "key_cert_sign crl_sign encipher_only decipher_only"
).split()


def canonical(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


@contextmanager
def sigstore() -> Iterator[SigstoreServer]:
    """Serve an instance while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path.endswith("/.well-known/openid-configuration")
            at = instance.issuer
            self._answer(
                {"issuer": at, "authorization_endpoint": f"{at}/auth", "token_endpoint": at}
            )

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                if self.path.endswith("/signingCert"):
                    answer = instance.certify(self.headers["Authorization"], body)
                else:
                    answer = instance.log(body)
            except jwt.InvalidTokenError:
                self.send_error(401)
                return
            self._answer(answer)

        def _answer(self, document: dict[str, Any]) -> None:
            raw = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *args: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    instance = SigstoreServer(f"http://127.0.0.1:{server.server_port}")
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield instance
    finally:
        server.shutdown()
        server.server_close()
