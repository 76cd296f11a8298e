"""Fixtures that several packages' tests share; heavy imports stay inside them."""

import os
from pathlib import Path

import pytest

# Spinning OpenMP workers cost a factor of ten as soon as anything else runs on the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session", autouse=True)
def hasty_disk():
    """No test loses power, and each wait for the disk takes milliseconds; see test_files.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tuneline.files.os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def planted_faults():
    """Appends `item limit` to the file TUNELINE_TEST_FAULTS for each limit that a step broke."""
    file = os.environ.get("TUNELINE_TEST_FAULTS")
    if not file:
        yield
        return
    from tuneline.evidence import Evidence

    broken, make = set(), Evidence.__init__

    def record(self, **fields):
        make(self, **fields)
        broken.update(f"{self.item} {m.name}\n" for m in self.measurements if m.ok is False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evidence, "__init__", record)
        yield
    with open(file, "a") as listed:
        listed.writelines(sorted(broken))


@pytest.fixture(scope="module")
def postgres():
    """A PostgreSQL server."""
    from tests.lab.postgres import PostgresServer, why_not

    if reason := why_not():
        pytest.skip(reason)
    server = PostgresServer()
    yield server
    server.remove()


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium."""
    from tests.lab.browser import chromium

    with chromium() as made:
        yield made


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """A tiny trained base, adapter and merged model with their GGUF files."""
    from tests.lab.tiny_task import TinyModels

    # The parts of the suite share them (scripts/run_tests.py).
    shared = os.environ.get("SHARED_TEST_MODELS")
    return TinyModels(Path(shared) if shared else tmp_path_factory.mktemp("tiny-models"))


@pytest.fixture(scope="session")
def other_adapter(tiny_models, tmp_path_factory):
    """Another adapter of the tiny base, with other names of the same intents, as GGUF."""
    from tests.lab.tiny_task import OTHER_INTENTS, train_adapter

    from tuneline.gguf.export import export_lora_gguf

    root = tmp_path_factory.mktemp("other-adapter")
    folder = train_adapter(tiny_models.base, root / "adapter", OTHER_INTENTS)
    return export_lora_gguf(folder, tiny_models.base, root / "adapter.gguf").path


@pytest.fixture
def tiny_lab(tiny_models, tmp_path, tmp_path_factory, monkeypatch):
    """Make a run of the tiny models whose dataset and shipped bytes are there."""
    from tests.lab.runs import Lab
    from tests.lab.tiny_task import task_rows

    # One cache for all tests, so that the tiny base is exported and asked once.
    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path_factory.getbasetemp() / "tiny-cache"))
    monkeypatch.setenv("TUNELINE_THREADS", "1")

    def make(rows=None, model=None, **overrides):
        lab = Lab(tmp_path, {"base_model": str(tiny_models.base), **overrides})
        lab.leave_dataset(rows or task_rows({"train": 60, "validation": 30, "holdout": 16}))
        lab.leave_shipped(model or tiny_models.candidate_gguf)
        return lab

    return make


@pytest.fixture
def trtllm_image(tmp_path_factory, monkeypatch):
    """A stand-in for NVIDIA's TensorRT-LLM image with one L4: its programs are on PATH."""
    from tests.lab.trtllm import TrtllmImage

    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path_factory.mktemp("trtllm-cache")))
    return TrtllmImage(tmp_path_factory.mktemp("trtllm"), monkeypatch)


@pytest.fixture
def policy(tmp_path, monkeypatch):
    """Put another policy in place: the shipped one with some of its keys replaced."""
    import yaml

    from tuneline.config.policy import policy_file

    shipped = yaml.safe_load(policy_file().read_text())

    def place(**keys):
        path = tmp_path / "policy.yaml"
        path.write_text(yaml.safe_dump({**shipped, **keys}))
        monkeypatch.setenv("TUNELINE_POLICY", str(path))

    return place


@pytest.fixture(params=["file", "s3"])
def any_store(request, tmp_path, monkeypatch):
    """A store on a directory, then one on an S3 server over HTTP."""
    from tests.lab.s3_server import s3

    from tuneline.store import open_store

    if request.param == "file":
        yield open_store((tmp_path / "store").as_uri())
        return
    with s3(monkeypatch, "shared"):
        yield open_store("s3://shared/team")
