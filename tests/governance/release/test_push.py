"""A released version is pushed to a hub and to a registry, byte for byte, or refused."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from jsonschema import Draft202012Validator, FormatChecker
from tests.governance.conftest import BROKEN
from tests.lab.hub_server import TOKEN, WritableHub
from tests.lab.registry_server import PASSWORD, USER, RegistryServer, TokenRegistry
from tests.lab.releases import flip

from tuneline.artifacts.release_log import Withdrawn
from tuneline.artifacts.releases import Release
from tuneline.cli import main
from tuneline.errors import UserError
from tuneline.governance.release.pointer import read_pointer, record
from tuneline.governance.release.push import destinations_of, push_everywhere
from tuneline.governance.release.verify import version_differences
from tuneline.store import open_store

BIN = Path(sys.executable).parent
DOCS = Path(__file__).parents[3] / "docs/governance.md"
# Of model-spec at d78bf32, under Apache-2.0.
SCHEMA = json.loads(Path(__file__).with_name("modelpack-config.schema.json").read_text())


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    server = RegistryServer(tmp_path_factory.mktemp("registry"))
    yield server
    server.kill()


@pytest.fixture
def hub(monkeypatch):
    server = WritableHub()
    # The client reads its variables when it is imported.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.stop()


def docker_config(folder, host, user=USER, password=PASSWORD):
    """Log in as `docker login` does."""
    from base64 import b64encode

    auth = b64encode(f"{user}:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))


@pytest.fixture
def ready_lab(finished_lab, monkeypatch, tmp_path):
    """Make a run that only waits for its promotion."""
    (tmp_path / "docker").mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))

    def make(**overrides):
        lab = finished_lab(name="model", **overrides)
        assert lab.execute("lineage").verdict == "pass"
        return lab

    return make


def promote(lab, *destinations):
    """`tuneline run promote`; its exit code."""
    options = [word for to in destinations for word in ("--push", to)]
    return main(["run", "promote", "--run", lab.run.uri, *options])


def pushes(lab):
    log = lab.root / f"store/models/model/{lab.run.run_id}/release.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [(line["to"], line["digest"]) for line in lines if line["event"] == "pushed"]


def folder_of(lab):
    """The version's files by name, without its log and the store's notes on hashes."""
    prefix = f"models/model/{lab.run.run_id}/"
    root = lab.root / "store" / prefix
    names = [key.removeprefix(prefix) for key in lab.run.store.keys(prefix.rstrip("/"))]
    return {name: (root / name).read_bytes() for name in names if name != "release.jsonl"}


def check_pulled(lab, folder):
    """Compare pulled files with the version, and let the release's own verification read them."""
    names = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
    files = {name: (folder / name).read_bytes() for name in names}
    assert files == folder_of(lab)
    pulled = open_store((lab.root / "pulled").as_uri())
    prefix = f"models/model/{lab.run.run_id}"
    for name, data in files.items():
        pulled.put_bytes(f"{prefix}/{name}", data)
    assert version_differences(pulled.uri_of(f"{prefix}/manifest.json")) == []


@pytest.fixture
def page(ready_lab, registry, hub, tmp_path, monkeypatch):
    """The commands of the documentation, with the names of this test; and the run."""
    lab = ready_lab(run_id="a1")
    docker_config(tmp_path / "docker", registry.host)
    monkeypatch.chdir(tmp_path)
    block = DOCS.read_text().split("### Publish a release")[1].split("```bash\n")[1].split("```")[0]
    names = {"STORE": lab.run.store.uri, "REGISTRY": registry.host, "ORG": "acme"}
    for name, value in names.items():
        block = block.replace(name, value)
    return lab, [shlex.split(line) for line in block.splitlines()]


def test_the_commands_of_the_page(page, registry, hub, tmp_path, capsys):
    lab, [promote, download, pull] = page
    assert main(promote[1:]) == 0
    total = len(folder_of(lab))
    (_, commit), (to, digest) = pushes(lab)
    assert to == f"oci://{registry.host}/models/support-intents"
    said = capsys.readouterr().out
    assert f"model a1 is at {to} as {digest} ({total} of {total} files were sent)" in said
    assert f"hf://acme/support-intents as {commit} (tagged a1 on main)" in said
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    subprocess.run([BIN / download[0], *download[1:]], env=environment, check=True)
    by_digest = [pull[0], "pull", pull[2].replace(":a1", f"@{digest}"), *pull[3:], "--plain-http"]
    for command in ([*pull, "--plain-http"], by_digest):
        subprocess.run(command, check=True)
        check_pulled(lab, Path("from-registry"))
        shutil.rmtree("from-registry")
    shutil.rmtree("from-hub/.cache")
    Path("from-hub/.gitattributes").unlink()
    check_pulled(lab, Path("from-hub"))
    assert ModelCard.load(Path("from-hub/README.md")).data.license

    # Again: nothing is sent, nothing is logged a second time.
    sent = list(hub.uploads)
    assert main(promote[1:]) == 0
    assert capsys.readouterr().out.count("it was there already") == 2
    assert (pushes(lab), hub.uploads) == ([(_, commit), (to, digest)], sent)
    assert main(["verify", lab.run.store.uri_of("models/model/a1/manifest.json")]) == 0
    assert main(["lineage", "model", "--store", lab.run.store.uri]) == 0
    assert f"pushed to {to}" in capsys.readouterr().out


def test_the_artifact_is_a_model_pack(ready_lab, registry, tmp_path):
    lab = ready_lab()
    docker_config(tmp_path / "docker", registry.host)
    assert promote(lab, f"oci://{registry.host}/models/pack:v1") == 0
    answer = registry.get("models/pack", "manifests/v1")
    assert f"sha256:{sha256(answer.content).hexdigest()}" == pushes(lab)[0][1]
    manifest = answer.json()
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    config = registry.get("models/pack", f"blobs/{manifest['config']['digest']}").json()
    Draft202012Validator(SCHEMA, format_checker=FormatChecker()).validate(config)
    assert (config["descriptor"]["name"], config["descriptor"]["version"]) == ("model", "test")
    assert config["config"] == {"format": "gguf", "quantization": "f16"}
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in manifest["layers"]]
    kinds = {
        layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"].split(".model.")[1]
        for layer in manifest["layers"]
    }
    assert kinds["model.gguf"] == kinds["adapter/adapter_model.safetensors"] == "weight.v1.raw"
    assert kinds["tokenizer.json"] == kinds["adapter/adapter_config.json"] == "weight.config.v1.raw"
    assert kinds["README.md"] == kinds["evidence/lineage/evidence.json"] == "doc.v1.raw"


def test_a_run_pushes_where_its_settings_say(ready_lab, hub):
    lab = ready_lab(deployment={"push_to": ["hf://acme/support"]})
    assert promote(lab) == 0
    [(to, commit)] = pushes(lab)
    repository = hub.repositories["acme/support"]
    assert (to, repository.visibility) == ("hf://acme/support", "private")
    # The next version takes the place of files that it does not have, not of those of others.
    more = {"engine/old.engine": b"old", "notes.md": b"of somebody else"}
    repository.commit("main", {**repository.commits[commit], **more})
    second = ready_lab(run_id="second")
    assert promote(second, "hf://acme/support") == 0
    assert set(repository.commits[repository.tags["second"]]) == {
        ".gitattributes", "notes.md", *folder_of(second),
    }  # fmt: skip
    assert repository.tags["test"] == commit


def test_a_registry_that_dies_gets_only_what_it_lacks(
    ready_lab, registry, tmp_path, monkeypatch, capsys
):
    lab, to = ready_lab(), f"oci://{registry.host}/dies/support:v1"
    docker_config(tmp_path / "docker", registry.host)
    fetched, fetch = [], Release.fetch

    def dying(release, ref, target):
        fetched.append(ref.sha256)
        if len(fetched) == 10:
            registry.kill()
        return fetch(release, ref, target)

    monkeypatch.setattr(Release, "fetch", dying)
    assert promote(lab, to) == 75
    said = capsys.readouterr()
    assert "is released to" in said.out
    assert "is released, but not pushed: " in said.err
    assert "can't be reached" in said.err
    assert pushes(lab) == []
    registry.start()
    assert registry.get("dies/support", "manifests/v1").status_code == 404
    assert promote(lab, to) == 0
    # Nine arrived before it died, the tenth did not.
    assert fetched[10] == fetched[9]
    assert not set(fetched[:9]) & set(fetched[10:])
    assert set(fetched) == {sha256(data).hexdigest() for data in folder_of(lab).values()}
    assert [one for one, _ in pushes(lab)] == [to]


def test_a_hub_that_dies_gets_only_what_it_lacks(ready_lab, hub, capsys):
    lab, to = ready_lab(), "hf://acme/support@releases"
    hub.dies_after = 1
    assert promote(lab, to) == 75
    assert "can't be reached" in capsys.readouterr().err
    assert hub.repositories["acme/support"].tags == {}
    hub.stop()
    assert promote(lab, to) == 75
    hub.dies_after = None
    hub.start()
    assert promote(lab, to) == 0
    assert len(hub.uploads) == len(set(hub.uploads)) >= 2
    assert set(hub.repositories["acme/support"].branches) == {"main", "releases"}


REFUSED = [
    ("ftp://host/model", 2, "can't push to 'ftp://host/model': write hf://org/name@branch or"),
    ("oci://user:secret-word-1@host/b", 2, "can't push to 'oci://***@host/b': write hf://"),
    ("oci://{host}/wrong/password", 2, "answers 401 to HEAD: the credentials for 127"),
    ("hf://others/support", 2, "the hub answers 403: HF_TOKEN is missing or wrong, or lacks"),
    ("hf://acme/wrong", 2, "the hub answers 401: HF_TOKEN is missing or wrong"),
    ("oci://127.0.0.1:9/a/b", 75, "the registry can't be reached"),
]


def test_a_push_that_is_refused(ready_lab, registry, hub, tmp_path, monkeypatch, capsys):
    lab = ready_lab()
    docker_config(tmp_path / "docker", registry.host, password="wrong-password-1")
    written = ""
    for to, code, why in REFUSED:
        if to == "hf://acme/wrong":
            monkeypatch.setenv("HF_TOKEN", "hf_SomeTokenThatIsWrong123")
        assert promote(lab, to.format(host=registry.host)) == code
        said = capsys.readouterr()
        assert why in said.err
        assert len(said.err.splitlines()) == 1
        # An address is read before anything is released; all else is tried after.
        released = (lab.root / "store/models/model/staging.json").exists()
        assert released == ("can't push" not in why)
        written += said.out + said.err
    assert pushes(lab) == []
    for path in (lab.root / "store").rglob("*"):
        written += path.read_bytes().decode(errors="replace") if path.is_file() else ""
    for secret in (PASSWORD, "wrong-password-1", "secret-word-1", TOKEN, "hf_SomeToken"):
        assert secret not in written


def test_other_bytes_are_not_pushed(ready_lab, registry, hub, tmp_path, capsys):
    lab = ready_lab()
    docker_config(tmp_path / "docker", registry.host)
    assert promote(lab) == 0
    flip(lab.root / "store/models/model/test/model.gguf")
    capsys.readouterr()
    # promote refuses, and so does the push, whoever calls it.
    destinations = [f"oci://{registry.host}/flipped/a", "hf://acme/flipped"]
    assert promote(lab, *destinations) == 2
    assert "model.gguf is corrupt" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"(is not what was released: .*model\.gguf is corr.*){2}"):
        push_everywhere(lab.run, destinations_of(lab.run, destinations))
    assert registry.get("flipped/a", "tags/list").status_code == 404
    assert hub.repositories == {}


def test_only_what_is_released_is_pushed(ready_lab, registry, tmp_path, capsys):
    lab, to = ready_lab(), f"oci://{registry.host}/unreleased/a"
    docker_config(tmp_path / "docker", registry.host)
    lab.leave("holdout_performance", {}, [BROKEN])
    assert promote(lab, to) == 2
    assert "model is not promoted: " in capsys.readouterr().err
    lab = ready_lab(run_id="second")
    assert promote(lab) == 0
    pointed = read_pointer(lab.run.store, "model", "staging")
    gone = Withdrawn(by="eve", reason="answers in the wrong language")
    record(pointed, "second", pointed.pointer.manifest_sha256, [gone])
    assert promote(lab, to) == 2
    assert "second was withdrawn: answers in the wrong language" in capsys.readouterr().err
    assert registry.get("unreleased/a", "tags/list").status_code == 404


def test_a_tag_of_another_artifact_stays(ready_lab, registry, hub, tmp_path, capsys):
    lab, to = ready_lab(), [f"oci://{registry.host}/tagged/a:stable", "hf://acme/tagged"]
    docker_config(tmp_path / "docker", registry.host)
    assert promote(lab, *to) == 0
    before = registry.get("tagged/a", "manifests/stable").content
    repository = hub.repositories["acme/tagged"]
    other = {**repository.commits[repository.tags["test"]], "README.md": b"another"}
    repository.tags["test"] = moved = repository.commit("main", other)
    capsys.readouterr()
    second = ready_lab(run_id="second")
    assert promote(second, to[0]) == 2
    assert "has a tag stable of another artifact (sha256:" in capsys.readouterr().err
    assert registry.get("tagged/a", "manifests/stable").content == before
    assert promote(lab, to[1]) == 2
    assert "has another README.md in " in capsys.readouterr().err
    assert repository.tags["test"] == moved


@pytest.fixture
def helper(tmp_path, monkeypatch, ready_lab):
    """A credential helper, which Docker's configuration names for a registry."""
    program = tmp_path / "bin/docker-credential-test"
    program.parent.mkdir()
    found = json.dumps({"Username": USER, "Secret": PASSWORD})
    program.write_text(f"#!/bin/sh\ncat > /dev/null\necho '{found}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return lambda host: monkeypatch.setenv(
        "DOCKER_AUTH_CONFIG", json.dumps({"credHelpers": {host: "test"}})
    )


def test_a_registry_that_sells_tokens(ready_lab, helper, capsys):
    lab, registry = ready_lab(), TokenRegistry()
    helper(registry.host)
    # It is not on this machine by its name, so a password would go by TLS alone.
    assert promote(lab, f"oci://{registry.host}/a/b") == 75
    assert registry.seen == []
    assert promote(lab, f"oci+http://{registry.host}/a/b") == 0
    assert {sha256(data).hexdigest() for data in folder_of(lab).values()} <= {
        digest.removeprefix("sha256:") for digest in registry.stored
    }
    # Tokens ran out on the way, and neither they nor the password went anywhere else.
    assert [kind for _, path, kind in registry.seen if path == "/token"] == ["Basic"] * 4
    assert {kind for _, path, kind in registry.seen if path == "/upload"} == {""}
    assert {kind for _, path, kind in registry.seen if path.startswith("/v2")} == {"", "Bearer"}
    registry.may_push = False
    capsys.readouterr()
    assert promote(lab, f"oci+http://{registry.host}/a/b:other") == 2
    assert "the registry answers 403 to POST: the credentials for" in capsys.readouterr().err
    registry.stop()
