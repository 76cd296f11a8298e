"""A released version is pushed to a hub and to a registry, byte for byte, or refused."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from tests.governance.conftest import BROKEN
from tests.lab.hub_server import TOKEN, WritableHub
from tests.lab.registry_server import PASSWORD, USER, RegistryServer
from tests.lab.releases import flip

from tuneline.artifacts.release_log import Withdrawn
from tuneline.artifacts.releases import Release
from tuneline.cli import main
from tuneline.governance.release.pointer import read_pointer, record
from tuneline.governance.release.verify import version_differences
from tuneline.store import open_store

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


def pushes(lab, version="test"):
    log = lab.root / f"store/models/model/{version}/release.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [(line["to"], line["digest"]) for line in lines if line["event"] == "pushed"]


def folder_of(lab, version="test"):
    """The version's files by name, without its log and the store's notes on hashes."""
    root = lab.root / "store/models/model" / version
    keys = lab.run.store.keys(f"models/model/{version}")
    names = [key.removeprefix(f"models/model/{version}/") for key in keys]
    return {name: (root / name).read_bytes() for name in names if name != "release.jsonl"}


def check_pulled(lab, files, tmp_path):
    """Compare pulled files with the version, and let the release's own verification read them."""
    assert files == folder_of(lab)
    root = tmp_path / "pulled"
    for name, data in files.items():
        target = root / "models/model/test" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    uri = f"{open_store(root.as_uri()).uri}/models/model/test/manifest.json"
    assert version_differences(uri) == []


def test_to_a_registry_and_back(ready_lab, registry, tmp_path, capsys):
    lab, to = ready_lab(), f"oci://{registry.host}/models/support"
    docker_config(tmp_path / "docker", registry.host)
    assert promote(lab, to) == 0
    [(_, digest)] = pushes(lab)
    total = len(folder_of(lab))
    assert (
        f"model test is at {to} as {digest} ({total} of {total} files were"
        in capsys.readouterr().out
    )

    answer = registry.get("models/support", f"manifests/{digest}")
    assert f"sha256:{sha256(answer.content).hexdigest()}" == digest
    assert registry.get("models/support", "manifests/test").content == answer.content
    manifest = answer.json()
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    config = registry.get("models/support", f"blobs/{manifest['config']['digest']}").json()
    Draft202012Validator(SCHEMA, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(
        config
    )
    assert config["descriptor"]["version"] == "test"
    assert config["config"]["format"] == "gguf"
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in manifest["layers"]]
    kinds = {
        layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"].split(".model.")[1]
        for layer in manifest["layers"]
    }
    assert kinds["model.gguf"] == kinds["adapter/adapter_model.safetensors"] == "weight.v1.raw"
    assert kinds["tokenizer.json"] == kinds["adapter/adapter_config.json"] == "weight.config.v1.raw"
    assert kinds["README.md"] == kinds["evidence/lineage/evidence.json"] == "doc.v1.raw"
    files = {
        layer["annotations"]["org.cncf.model.filepath"]: registry.get(
            "models/support", f"blobs/{layer['digest']}"
        ).content
        for layer in manifest["layers"]
    }
    check_pulled(lab, files, tmp_path)

    # Again: nothing is sent, nothing is logged a second time.
    assert promote(lab, to) == 0
    assert "it was there already" in capsys.readouterr().out
    assert pushes(lab) == [(to, digest)]
    assert main(["verify", lab.run.store.uri_of("models/model/test/manifest.json")]) == 0
    assert main(["lineage", "model", "--store", lab.run.store.uri]) == 0
    assert f"pushed to {to}" in capsys.readouterr().out


def test_to_a_hub_and_back(ready_lab, hub, tmp_path, capsys):
    from huggingface_hub import ModelCard, snapshot_download

    lab = ready_lab(deployment={"push_to": ["hf://acme/support"]})
    assert promote(lab) == 0
    [(to, commit)] = pushes(lab)
    assert to == "hf://acme/support"
    assert f"as {commit} (tagged test on main)" in capsys.readouterr().out
    repository = hub.repositories["acme/support"]
    assert (repository.visibility, repository.tags) == ("private", {"test": commit})
    local = Path(snapshot_download("acme/support", revision="test", local_dir=tmp_path / "down"))
    shutil.rmtree(local / ".cache")
    files = {str(f.relative_to(local)): f.read_bytes() for f in local.rglob("*") if f.is_file()}
    assert files.pop(".gitattributes")
    check_pulled(lab, files, tmp_path)
    assert ModelCard.load(local / "README.md").data.license

    sent = len(hub.uploads)
    assert promote(lab) == 0
    assert "it was there already" in capsys.readouterr().out
    assert (len(hub.uploads), pushes(lab)) == (sent, [(to, commit)])
    # The next version takes the place of the files that it does not have.
    repository.commit("main", {**repository.commits[commit], "engine/old.engine": b"old"})
    second = ready_lab(run_id="second")
    assert promote(second, "hf://acme/support") == 0
    assert set(repository.commits[repository.tags["second"]]) - {".gitattributes"} == set(
        folder_of(second, "second")
    )
    assert repository.tags["test"] == commit


def test_a_registry_that_dies_gets_only_what_it_lacks(
    ready_lab, registry, tmp_path, monkeypatch, capsys
):
    lab, to = ready_lab(), f"oci://{registry.host}/dies/support:v1"
    docker_config(tmp_path / "docker", registry.host)
    fetched, fetch = [], Release.fetch

    def dying(release, ref, target):
        fetched.append(ref.name)
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
    # The registry shares blobs between repositories, but is asked for each repository.
    assert fetched[10:] == fetched[9:10] + [n for n in fetched[10:] if n not in fetched[:10]]
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


@pytest.mark.parametrize(
    ("to", "code", "why"),
    [
        (
            "oci://{host}/wrong/password",
            2,
            "the registry answers 401 to HEAD: the credentials for ",
        ),
        ("hf://acme/wrong", 2, "the hub answers 401: HF_TOKEN is missing or wrong"),
        ("hf://others/support", 2, "the hub answers 403: HF_TOKEN is missing or wrong, or lacks"),
        ("oci://127.0.0.1:9/a/b", 75, "the registry can't be reached"),
        ("ftp://host/model", 2, "can't push to 'ftp://host/model': write hf://org/name@branch or"),
        ("oci://user:secret-word-1@host/b", 2, "can't push to 'oci://***@host/b': write hf://"),
    ],
)
def test_a_push_that_is_refused(
    ready_lab, registry, hub, tmp_path, monkeypatch, capsys, to, code, why
):
    lab = ready_lab()
    docker_config(tmp_path / "docker", registry.host, password="wrong-password-1")
    if "wrong" in to:
        monkeypatch.setenv("HF_TOKEN", "hf_SomeTokenThatIsWrong123")
    assert promote(lab, to.format(host=registry.host)) == code
    said = capsys.readouterr()
    assert why in said.err
    assert len(said.err.splitlines()) == 1
    written = said.out + said.err
    for path in lab.root.rglob("*"):
        if path.is_file() and "docker" not in path.parts:
            written += path.read_bytes().decode(errors="replace")
    for secret in (PASSWORD, "wrong-password-1", "secret-word-1", TOKEN, "hf_SomeToken"):
        assert secret not in written
    # An address is read before anything is released; all else is tried after.
    assert (lab.root / "store/models/model/staging.json").exists() == ("can't push" not in why)


def test_other_bytes_are_not_pushed(ready_lab, registry, hub, tmp_path, capsys):
    lab = ready_lab()
    docker_config(tmp_path / "docker", registry.host)
    assert promote(lab) == 0
    flip(lab.root / "store/models/model/test/model.gguf")
    from tuneline.governance.release.push import destinations_of, push_everywhere

    capsys.readouterr()
    assert promote(lab, f"oci://{registry.host}/flipped/a", "hf://acme/flipped") == 2
    assert "model.gguf is corrupt" in capsys.readouterr().err
    for to in destinations_of(lab.run, [f"oci://{registry.host}/flipped/a", "hf://acme/flipped"]):
        with pytest.raises(Exception, match=r"is not what was released: .*model\.gguf is corrupt"):
            push_everywhere(lab.run, [to])
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
