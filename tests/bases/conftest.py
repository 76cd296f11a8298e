"""A server of objects with a tiny base model and a run's store, and a count of what is fetched."""

import pytest
from tests.lab import s3_server
from tests.lab.runs import Lab
from tests.lab.tiny_models import make_model

from tuneline.models.origins import BucketSource


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny base model under a licence; tests must not change it."""
    directory = tmp_path_factory.mktemp("tiny") / "model"
    make_model(directory)
    (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (directory / "NOTICE").write_text("Made by a test.\n")
    return directory


@pytest.fixture
def s3(monkeypatch, tiny):
    """A client of a server whose bucket `models` holds the model and whose `store` is empty."""
    with s3_server.s3(monkeypatch, "models", "store") as (client, _):
        for path in tiny.iterdir():
            client.upload_file(str(path), "models", f"team/tiny/{path.name}")
        yield client


@pytest.fixture
def fetched(monkeypatch, tmp_path):
    """The files that were fetched from the origin, in order; the cache is empty."""
    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path / "cache"))
    names = []
    real = BucketSource.fetch

    def counted(self, name, folder):
        names.append(name)
        real(self, name, folder)

    monkeypatch.setattr(BucketSource, "fetch", counted)
    return names


@pytest.fixture
def lab_of(tmp_path):
    """Make a run of a base model; in a bucket if a store is named."""

    def make(base, name="run", store=None, pii_ner=False, **overrides):
        root = tmp_path / name
        root.mkdir()
        settings = {"base_model": base, "data": {"pii_ner": pii_ner}, **overrides}
        return Lab(root, settings, store=store, run_id=name)

    return make
