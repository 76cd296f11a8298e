"""A signed release verifies by its key; unsigned, changed or by another key it does not."""

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from tests.governance.conftest import CLEAN_CODE
from tests.lab.s3_server import s3

from tuneline.artifacts.governance import Manifest
from tuneline.artifacts.release_log import Released
from tuneline.artifacts.releases import read_release
from tuneline.cli import main
from tuneline.errors import UserError
from tuneline.governance.release import signature
from tuneline.governance.release.pointer import last_move, read_pointer, record
from tuneline.governance.release.verify import examine
from tuneline.store import open_store

MANIFEST = "models/model/test/manifest.json"


def key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a key by OpenSSL, as the documentation says."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    make = "openssl ecparam -name prime256v1 -genkey -noout -out".split()
    subprocess.run([*make, str(private)], check=True)
    subprocess.run(
        ["openssl", "ec", "-in", str(private), "-pubout", "-out", str(public)],
        check=True,
        capture_output=True,
    )
    return private, public


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


def test_a_signed_release_in_a_bucket_verifies(signed, keys, monkeypatch):
    with s3(monkeypatch, "shared"):
        bucket = open_store("s3://shared/team")
        for key in signed.run.store.keys("models"):
            bucket.put_bytes(key, signed.run.store.get_bytes(key))
        uri = bucket.uri_of(MANIFEST)
        assert examine(uri, keys[1]).differences == []
        bucket.put_bytes("models/model/test/lora.json", b"{}")
        [sentence] = examine(uri, keys[1]).differences
        assert "lora.json is corrupt" in sentence


class Mallory:
    """Whoever may write to the store, and has seen a signature by the key over other files."""

    def __init__(self, store, private, scratch):
        self.store, self.private, self.scratch = store, private, scratch

    def signs(self, files):
        """What the owner of the key has signed for a purpose of their own."""
        paths = {}
        for name, content in files.items():
            paths[name] = self.scratch / name
            paths[name].write_bytes(content)
        return signature.sign(paths, self.private, self.scratch).read_bytes()

    def lay(self, version, files, sig=None, *, name="model"):
        """Write a version with a manifest that fits; return the hash of the manifest."""
        folder = f"models/{name}/{version}"
        stated = [
            {"name": file, "sha256": self.store.put_bytes(f"{folder}/{file}", content).sha256}
            | {"bytes": len(content)}
            for file, content in files.items()
        ]
        said = signature.public_part(self.private)
        manifest = Manifest(name=name, version=version, signature=said, files=stated)
        raw = manifest.model_dump_json(by_alias=True).encode()
        self.store.put_bytes(
            f"{folder}/model.sig", sig or self.signs({**files, "manifest.json": raw})
        )
        return self.store.put_bytes(f"{folder}/manifest.json", raw).sha256

    def releases(self, version, sha256, *, name="model", lineage=None):
        pointed = read_pointer(self.store, name)
        previous, follows = last_move(pointed)
        event = Released(
            previous_version=previous, follows=follows, run="r", lineage_sha256=lineage
        )
        record(pointed, version, sha256, [event])


def over_other_files(mallory, version):
    readme = {"README.md": b"A model."}
    sha256 = mallory.lay(version, {"model.gguf": b"GGUF evil", **readme}, mallory.signs(readme))
    mallory.releases(version, sha256)
    return (
        f"model/{version}",
        "does not sign this release: it does not cover manifest.json, model.gguf",
    )


def over_one_file_more(mallory, version):
    files = {"model.gguf": b"GGUF"}
    sha256 = mallory.lay(version, files, mallory.signs({**files, "README.md": b"A model."}))
    mallory.releases(version, sha256)
    return f"model/{version}", "it covers, beyond the release, README.md"


def never_promoted(mallory, version):
    """`lineage` has signed it, and `promote` has refused it."""
    mallory.releases(version, mallory.lay(version, {"model.gguf": b"GGUF bad"}))
    return f"model/{version}", f"{version} was released without a statement of lineage"


def with_the_statement_of_another_version(mallory, version):
    sha256 = mallory.lay(version, {"model.gguf": b"GGUF bad"})
    ours = "attestations/lineage.dsse.json"
    raw = mallory.store.get_bytes(f"models/model/test/{ours}")
    lineage = mallory.store.put_bytes(f"models/model/{version}/{ours}", raw).sha256
    mallory.releases(version, sha256, lineage=lineage)
    return f"model/{version}", "is about another manifest"


def under_another_name(mallory, version):
    for key in list(mallory.store.keys("models/model/test")):
        raw = mallory.store.get_bytes(key)
        mallory.store.put_bytes(key.replace("/model/test/", f"/other/{version}/"), raw)
    return f"other/{version}", "is the manifest of model test"


ATTACKS = (
    over_other_files,
    over_one_file_more,
    never_promoted,
    with_the_statement_of_another_version,
    under_another_name,
)


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
        for number, attack in enumerate(ATTACKS):
            scratch = tmp_path / str(number)
            scratch.mkdir()
            version, named = attack(Mallory(store, keys[0], scratch), f"v{number}")
            uri = store.uri_of(f"models/{version}/manifest.json")
            assert main(["verify", uri, "--public-key", str(keys[1])]) == 1, attack
            said = capsys.readouterr().err
            assert named in said, (attack, said)
        assert main(["verify", store.uri_of(MANIFEST), "--public-key", str(keys[1])]) == 0


def test_promote_refuses_a_version_under_a_signature_over_other_files(signed, keys, tmp_path):
    store, readme = signed.run.store, {"README.md": b"A model."}
    mallory = Mallory(store, keys[0], tmp_path)
    document = json.loads(store.get_bytes(MANIFEST))
    evil = store.put_bytes("models/model/test/model.gguf", b"GGUF evil")
    store.put_bytes("models/model/test/README.md", readme["README.md"])
    for entry in document["files"]:
        if entry["name"] == "model.gguf":
            entry.update(sha256=evil.sha256, bytes=evil.bytes)
    store.put_bytes(MANIFEST, json.dumps(document).encode())
    store.put_bytes("models/model/test/model.sig", mallory.signs(readme))
    with pytest.raises(UserError, match="does not sign this release: it does not cover"):
        signed.execute("promote")
    assert read_release(store, "model") is None


def test_without_the_key_the_signature_is_left_unchecked(signed):
    found = examine(signed.run.store.uri_of(MANIFEST))
    assert found.differences == []
    assert any("was not checked: give the public key" in note for note in found.unchecked)


def test_a_release_that_is_not_signed_is_refused_by_a_key(finished_lab, keys):
    lab = finished_lab(name="model")
    lab.execute("lineage")
    assert "the release is not signed" in differences(lab, keys[1])[0]


def test_a_removed_signature_is_named_without_a_key(signed):
    (signed.root / "store/models/model/test/model.sig").unlink()
    assert "the release is not signed" in differences(signed, None)[0]


def test_a_signature_by_another_key_is_named(signed, tmp_path):
    _, other = key_pair(tmp_path, "others")
    assert "is by another key than" in differences(signed, other)[0]


def test_a_rewritten_manifest_is_named_by_the_signature(signed, keys, tmp_path):
    """Whoever may write to the store fits hashes and names; the key is not in the store."""
    store = signed.run.store
    document = json.loads(store.get_bytes(MANIFEST))
    store.put_bytes(MANIFEST, json.dumps({**document, "reason": "other"}).encode())
    assert differences(signed, None) == []
    [sentence] = differences(signed, keys[1])
    assert "does not sign this release: it was made for other bytes of manifest.json" in sentence


@pytest.mark.parametrize("content", ["", "no key"])
def test_a_key_that_is_none_is_the_users_error(keys, tmp_path, content):
    bad = tmp_path / "bad.pem"
    bad.write_text(content)
    with pytest.raises(UserError, match=r"governance\.signing_key: .*bad\.pem can't be used"):
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
