"""fetch_base pins the revision, and refuses a model before its weights are fetched."""

import json

import pytest
from tests.lab.hub_server import COMMIT, hub, in_a_process
from tests.lab.runs import values

from tuneline.artifacts.training import BASE
from tuneline.errors import UserError
from tuneline.training.fetch_base import address_of


def test_the_record_names_revision_hash_and_licence(s3, fetched, lab_of):
    lab = lab_of("s3://models/team/tiny", store="s3://store/main")
    found = values(lab.execute("fetch_base"))
    assert found["license"] == "Apache-2.0"
    assert found["revision"] == found["digest"]
    assert found["bytes"] > 1000


def test_a_second_try_keeps_the_commit_that_the_first_has_pinned(tiny, lab_of):
    lab = lab_of("hf://org/tiny@main")
    assert address_of(lab.run) == "hf://org/tiny@main"
    stored = {
        "uri": "hf://org/tiny@main",
        "place": "file:///x",
        "digest": "d",
        "license": None,
        "license_source": "nowhere",
        "revision": COMMIT,
        "architecture": "LlamaForCausalLM",
        "context_length": 8,
        "vocab_size": 8,
        "files": {},
    }
    lab.leave("fetch_base", {"base.json": json.dumps(stored)})
    assert address_of(lab.run) == f"hf://org/tiny@{COMMIT}"


def test_an_unfit_model_is_refused_before_its_weights_are_fetched(s3, fetched, lab_of):
    s3.put_object(
        Bucket="models", Key="team/tiny/README.md", Body=b"---\nlicense: cc-by-nc-4.0\n---\n"
    )
    lab = lab_of("s3://models/team/tiny", store="s3://store/main")
    with pytest.raises(UserError, match=r"CC-BY-NC-4\.0: refuses commercial use"):
        lab.execute("fetch_base")
    assert "README.md" in fetched
    assert "model.safetensors" not in fetched
    assert list(lab.run.store.keys("bases")) == []


def test_a_branch_is_pinned_once_and_no_later_try_needs_the_hub(tiny, lab_of, tmp_path):
    lab = lab_of("hf://org/tiny@main")

    def fetch(**environment):
        return in_a_process(
            "from tuneline.step import execute",
            "execute('fetch_base', sys.argv[1]).model_dump(mode='json')",
            lab.run.uri,
            home=tmp_path / "hf",
            TUNELINE_CACHE=str(tmp_path / "cache"),
            **environment,
        )

    files = {path.name: path.read_bytes() for path in tiny.iterdir()}
    with hub("models", "org/tiny", files) as url:
        record = fetch(HF_ENDPOINT=url)
    assert record["measurements"][0]["value"] == COMMIT
    stored = BASE.find(lab.run)
    assert (stored.uri, stored.revision, stored.license) == (
        "hf://org/tiny@main",
        COMMIT,
        "Apache-2.0",
    )
    assert fetch(HF_HUB_OFFLINE="1")["artifacts"] == record["artifacts"]
