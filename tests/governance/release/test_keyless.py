"""A release signed by an identity verifies for that identity alone.

The library's own client speaks to a Sigstore instance of the lab; the public one is not asked.
"""

import json

import pytest
from tests.governance.conftest import CLEAN_CODE

from tuneline.cli import main
from tuneline.config import build_config
from tuneline.errors import RetryableError, UserError
from tuneline.governance.release.signature import (
    Identity,
    identity_token,
    sign_by_identity,
    verifier_of,
)
from tuneline.governance.release.verify import examine

pytest.importorskip("model_signing", reason="requirements/signing.txt is not installed")
from tests.lab.sigstore_server import sigstore

MANIFEST = "models/model/test/manifest.json"
WORKFLOW = "https://github.com/example/models/.github/workflows/release.yml@refs/heads/main"
AMBIENT = ("GITHUB_ACTIONS", "SIGSTORE_ID_TOKEN", "GITLAB_CI", "BUILDKITE", "CIRCLECI")


@pytest.fixture(scope="module")
def instance():
    with sigstore() as running:
        yield running


@pytest.fixture
def settings(instance, tmp_path, monkeypatch):
    for name in AMBIENT:
        monkeypatch.delenv(name, raising=False)
    trust = instance.trust_config(tmp_path / "trust.json")
    return {"identity": WORKFLOW, "issuer": instance.issuer, "trust_config": str(trust)}


@pytest.fixture
def lab(finished_lab, settings):
    return finished_lab(
        CLEAN_CODE, name="model", profile="production", governance={"keyless": settings}
    )


def differences(lab, settings, **other):
    stated = {"identity": WORKFLOW, "issuer": settings["issuer"], **other}
    trust = lab.root / "trust.json"
    identity = Identity(stated["identity"], stated["issuer"], trust)
    return examine(lab.run.store.uri_of(MANIFEST), identity).differences


def test_a_release_is_signed_verified_and_promoted(lab, instance, settings, monkeypatch, capsys):
    token = instance.token(WORKFLOW)
    monkeypatch.setenv("SIGSTORE_ID_TOKEN", token)
    assert lab.execute("lineage").verdict == "pass"
    stated = json.loads((lab.root / "store" / MANIFEST).read_text())["signature"]
    assert (stated["identity"], stated["issuer"]) == (WORKFLOW, instance.issuer)
    assert "Sigstore" in stated["format"]
    lab.execute("promote")
    assert differences(lab, settings) == []
    [sentence] = differences(lab, settings, identity="mallory@example.org")
    assert "model.sig is not by mallory@example.org of" in sentence
    [sentence] = differences(lab, settings, issuer="https://accounts.example.org")
    assert "is not by" in sentence
    # The token is nowhere: neither in the store nor in what was printed.
    written = [p for p in (lab.root / "store").rglob("*") if p.is_file()]
    assert not any(token.encode() in path.read_bytes() for path in written)
    uri = lab.run.store.uri_of(MANIFEST)
    options = ["--identity", WORKFLOW, "--issuer", instance.issuer]
    assert main(["verify", uri, *options, "--trust-config", settings["trust_config"]]) == 0
    assert main(["verify", uri]) == 0
    said = capsys.readouterr()
    assert "was not checked: give the identity and its issuer" in said.out
    assert token not in said.out + said.err
    assert main(["verify", uri, "--identity", WORKFLOW]) == 2
    (lab.root / "store/models/model/test/lora.json").write_text("{}")
    [sentence] = differences(lab, settings)
    assert "lora.json is corrupt" in sentence


def test_a_manifest_that_names_another_signer_is_found(lab, instance, settings, monkeypatch):
    """Whoever rewrites the manifest writes any name into it; the certificate names the signer."""
    monkeypatch.setenv("SIGSTORE_ID_TOKEN", instance.token(WORKFLOW))
    lab.execute("lineage")
    document = json.loads(lab.run.store.get_bytes(MANIFEST))
    document["signature"]["identity"] = "mallory@example.org"
    lab.run.store.put_bytes(MANIFEST, json.dumps(document).encode())
    [sentence] = differences(lab, settings, identity="mallory@example.org")
    assert "does not sign this release" in sentence


def config_of(settings, **changes):
    governance = {"keyless": {**settings, **changes}}
    return build_config(
        {"data": {"source": "x.jsonl"}, "governance": governance}
    ).governance.keyless


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "version"
    made.mkdir()
    (made / "model.gguf").write_bytes(b"weights")
    return made


def test_the_token_of_another_identity_signs_nothing(settings, instance, folder, monkeypatch):
    monkeypatch.setenv("SIGSTORE_ID_TOKEN", instance.token("https://example.org/other"))
    signature = folder.parent / "model.sig"
    with pytest.raises(UserError, match="the token is not that of https://github"):
        sign_by_identity(folder, signature, config_of(settings))
    assert not signature.exists()


def test_a_token_from_a_file(settings, instance, folder):
    path = folder.parent / "token"
    path.write_text(instance.token(WORKFLOW) + "\n")
    signature = folder.parent / "model.sig"
    sign_by_identity(folder, signature, config_of(settings, token_file=str(path)))
    assert signature.exists()
    path.write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        identity_token(config_of(settings, token_file=str(path)))
    with pytest.raises(UserError, match=r"keyless\.token_file: "):
        identity_token(config_of(settings, token_file="/nowhere/token"))


def test_without_a_token_no_browser_is_opened(settings, folder, monkeypatch):
    monkeypatch.setattr("webbrowser.open", lambda *_: pytest.fail("a browser was opened"))
    with pytest.raises(UserError, match="set SIGSTORE_ID_TOKEN in the pod of lineage"):
        sign_by_identity(folder, folder.parent / "model.sig", config_of(settings))


def test_a_token_that_cannot_be_used_is_not_shown(settings, instance, folder, monkeypatch):
    expired, foreign = instance.token(WORKFLOW, exp=1), instance.token(WORKFLOW, aud="another")
    for raw in ("no-token-at-all", expired, foreign):
        monkeypatch.setenv("SIGSTORE_ID_TOKEN", raw)
        with pytest.raises(UserError, match="malformed") as refusal:
            sign_by_identity(folder, folder.parent / "model.sig", config_of(settings))
        assert raw not in str(refusal.value)


def test_a_provider_that_was_not_asked_is_refused(settings, instance, folder, monkeypatch):
    import jwt

    forged = jwt.encode(
        jwt.decode(instance.token(WORKFLOW), options={"verify_signature": False}), "x" * 32
    )
    monkeypatch.setenv("SIGSTORE_ID_TOKEN", forged)
    with pytest.raises(RetryableError, match="Sigstore can't be used: 401"):
        sign_by_identity(folder, folder.parent / "model.sig", config_of(settings))


def test_without_a_network_it_says_so(settings, instance, folder, monkeypatch):
    monkeypatch.setenv("SIGSTORE_ID_TOKEN", instance.token(WORKFLOW))
    text = (folder.parent / "trust.json").read_text()
    gone = folder.parent / "gone.json"
    gone.write_text(text.replace(instance.url, "http://127.0.0.1:9"))
    with pytest.raises(RetryableError, match="keyless signatures need a network"):
        sign_by_identity(
            folder, folder.parent / "model.sig", config_of(settings, trust_config=str(gone))
        )


def test_a_trust_configuration_that_is_none(settings, folder, monkeypatch, instance):
    monkeypatch.setenv("SIGSTORE_ID_TOKEN", instance.token(WORKFLOW))
    wrong = folder.parent / "wrong.json"
    wrong.write_text("{}")
    for path in (wrong, folder.parent / "missing.json"):
        with pytest.raises(UserError, match=r"governance\.keyless\.trust_config"):
            verifier_of(Identity("a", "b", path))


def test_a_release_has_one_signature(settings):
    with pytest.raises(UserError, match="a release has one signature"):
        build_config(
            {
                "data": {"source": "x.jsonl"},
                "governance": {"keyless": settings, "signing_key": "release.pem"},
            }
        )
