"""A signed release verifies by its key; unsigned, changed or by another key it does not."""

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext

import pytest
from tests.governance.conftest import CLEAN_CODE
from tests.lab.s3_server import s3
from tests.lab.signatures import FORGERIES, Writer, key_pair

from tuneline.artifacts.releases import read_release
from tuneline.cli import main
from tuneline.errors import UserError
from tuneline.governance.release import signature
from tuneline.governance.release.verify import examine
from tuneline.store import open_store

MANIFEST = "models/model/test/manifest.json"


@pytest.fixture
def keys(tmp_path):
    pytest.importorskip("model_signing", reason="requirements/signing.txt is not installed")
    return key_pair(tmp_path, "ours")


@pytest.fixture
def signed(finished_lab, keys):
    """A finished run whose release was signed."""
    private, public = keys
    governance = {"signing_key": str(private), "public_key": str(public)}
    lab = finished_lab(CLEAN_CODE, name="model", profile="production", governance=governance)
    assert lab.execute("lineage").verdict == "pass"
    return lab


def differences(lab, public):
    return examine(lab.run.store.uri_of(MANIFEST), public).differences


def test_a_signed_release_verifies_and_is_promoted(signed, keys):
    stated = json.loads((signed.root / "store" / MANIFEST).read_text())["signature"]
    assert (stated["file"], len(stated["public_key_sha256"])) == ("model.sig", 64)
    assert differences(signed, keys[1]) == []
    signed.execute("promote")
    assert differences(signed, keys[1]) == []
    # A step that is run again keeps the signature; another one would have other bytes.
    assert signed.execute("lineage").verdict == "pass"


def test_others_tools_verify_it(signed, keys):
    """The library's own command line, which knows nothing of our manifest."""
    folder = (signed.root / "store" / MANIFEST).parent
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder)]
    options = ["--signature", str(folder / "model.sig"), "--public_key", str(keys[1])]
    call = [*command, *options, "--ignore_unsigned_files"]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "lora.json").write_text("{}")
    assert subprocess.run(call, capture_output=True).returncode != 0


@pytest.mark.parametrize("where", ["file", "s3"])
def test_verify_names_what_the_key_did_not_sign_as_this_release(
    signed, keys, where, tmp_path, monkeypatch, capsys
):
    signed.execute("promote")
    with s3(monkeypatch, "shared") if where == "s3" else nullcontext():
        store = signed.run.store if where == "file" else open_store("s3://shared/team")
        if where == "s3":
            for key in signed.run.store.keys("models"):
                store.put_bytes(key, signed.run.store.get_bytes(key))
        for number, forge in enumerate(FORGERIES):
            named = forge(Writer(store, keys[0], tmp_path / f"{number}"), f"v{number}")
            uri = store.uri_of(f"models/model/v{number}/manifest.json")
            assert main(["verify", uri, "--public-key", str(keys[1])]) == 1, forge
            said = capsys.readouterr().err
            assert named in said, (forge, said)
        assert main(["verify", store.uri_of(MANIFEST), "--public-key", str(keys[1])]) == 0


def test_promote_refuses_a_version_under_a_signature_over_other_files(signed, keys, tmp_path):
    store, readme = signed.run.store, {"README.md": b"A model."}
    forger = Writer(store, keys[0], tmp_path / "forged")
    document = json.loads(store.get_bytes(MANIFEST))
    evil = store.put_bytes("models/model/test/model.gguf", b"GGUF evil")
    store.put_bytes("models/model/test/README.md", readme["README.md"])
    for entry in document["files"]:
        if entry["name"] == "model.gguf":
            entry.update(sha256=evil.sha256, bytes=evil.bytes)
    store.put_bytes(MANIFEST, json.dumps(document).encode())
    store.put_bytes("models/model/test/model.sig", forger.signs(readme))
    with pytest.raises(UserError, match="does not sign this release: it does not cover"):
        signed.execute("promote")
    assert read_release(store, "model") is None


def rewritten(lab):
    """Whoever may write to the store fits hashes and names; the key is not in the store."""
    store = lab.run.store
    document = json.loads(store.get_bytes(MANIFEST))
    store.put_bytes(MANIFEST, json.dumps({**document, "reason": "other"}).encode())


@pytest.mark.parametrize(
    ("change", "signer", "sentence"),
    [
        (lambda lab: (lab.root / "store/models/model/test/model.sig").unlink(), None,
         "the release is not signed"),
        (lambda lab: None, "others", "is by another key than"),
        (rewritten, "ours", "does not sign this release: it was made for other bytes of manifest"),
    ],
)  # fmt: skip
def test_a_release_that_the_key_did_not_sign_is_named(signed, tmp_path, change, signer, sentence):
    found = examine(signed.run.store.uri_of(MANIFEST))
    assert found.differences == []
    assert any("was not checked: give the public key" in note for note in found.unchecked)
    change(signed)
    key = signer and (tmp_path / "ours.pub" if signer == "ours" else key_pair(tmp_path, signer)[1])
    [said, *_] = differences(signed, key)
    assert sentence in said


def test_a_release_that_is_not_signed_is_refused_by_a_key(finished_lab, keys):
    lab = finished_lab(name="model")
    lab.execute("lineage")
    assert "the release is not signed" in differences(lab, keys[1])[0]


@pytest.mark.parametrize("content", ["", "no key"])
def test_a_key_that_is_none_is_the_users_error(keys, tmp_path, content):
    bad = tmp_path / "bad.pem"
    bad.write_text(content)
    unusable = r"governance\.signing_key: .*bad\.pem can't be used: .* curve \(openssl [^(]*\)$"
    with pytest.raises(UserError, match=unusable):
        signature.public_part(bad)
    with pytest.raises(UserError, match=r"can't be used: .*No such file"):
        signature.public_part(tmp_path / "none.pem")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a key by openssl")
def test_a_missing_library_is_one_sentence(tmp_path, monkeypatch):
    private, _ = key_pair(tmp_path, "ours")
    monkeypatch.setitem(sys.modules, "model_signing", None)
    monkeypatch.setitem(sys.modules, "model_signing.signing", None)
    with pytest.raises(UserError, match=r"pip install -r requirements/signing\.txt"):
        signature.public_part(private)
