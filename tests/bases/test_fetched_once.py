"""The base model is fetched from its origin once; every later pod takes it from the store."""

import os
import shutil
import threading

import pytest

from tuneline.artifacts.training import BASE
from tuneline.bases import base_of
from tuneline.errors import RetryableError, UserError
from tuneline.evaluation.forgetting.pair import find_origin
from tuneline.models import load_tokenizer, resolve
from tuneline.models.origins import BucketSource
from tuneline.store import CorruptObject

ORIGIN = "s3://models/team/tiny"
STORE = "s3://store/main"


def empty_origin(client):
    for entry in client.list_objects_v2(Bucket="models")["Contents"]:
        client.delete_object(Bucket="models", Key=entry["Key"])


def new_pod(monkeypatch, tmp_path):
    """A pod begins with an empty cache."""
    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path / f"pod-{len(list(tmp_path.iterdir()))}"))


def test_later_pods_take_the_model_from_the_store_when_its_origin_is_gone(
    s3, tiny, fetched, lab_of, tmp_path, monkeypatch
):
    lab = lab_of(ORIGIN, store=STORE)
    record = lab.execute("fetch_base")
    assert sorted(fetched) == sorted(path.name for path in tiny.iterdir())
    assert "licence Apache-2.0" in record.summary
    empty_origin(s3)
    for step in ("license_audit", "train", "lineage"):
        new_pod(monkeypatch, tmp_path)
        base = base_of(lab.context(step))
        assert base.digest == resolve(str(tiny)).digest
        assert {path.name for path in tiny.iterdir()} <= {path.name for path in base.path.iterdir()}
        assert (base.license, base.uri) == ("Apache-2.0", ORIGIN)
        assert (base.path / "NOTICE").read_text() == "Made by a test.\n"
    assert len(fetched) == len(list(tiny.iterdir()))


def test_forgetting_is_measured_on_the_copy_in_the_store(
    s3, fetched, lab_of, tmp_path, monkeypatch
):
    lab = lab_of(ORIGIN, store=STORE)
    lab.execute("fetch_base")
    empty_origin(s3)
    new_pod(monkeypatch, tmp_path)
    ctx = lab.context("base_regression")
    assert find_origin(ctx).base == base_of(ctx)


def test_a_step_that_reads_no_weights_copies_none(s3, fetched, lab_of, tmp_path, monkeypatch):
    lab = lab_of(ORIGIN, store=STORE)
    lab.execute("fetch_base")
    new_pod(monkeypatch, tmp_path)
    base = base_of(lab.context("schema_validation"), weights=False)
    assert not list(base.path.glob("*.safetensors"))
    assert load_tokenizer(base.path)("a").input_ids
    assert base.context_length == 256


def test_the_next_run_of_the_same_revision_fetches_nothing(s3, fetched, lab_of):
    first = lab_of(ORIGIN, "first", store=STORE)
    first.execute("fetch_base")
    known = len(fetched)
    second = lab_of(ORIGIN, "second", store=STORE)
    second.execute("fetch_base")
    assert len(fetched) == known
    assert BASE.find(second.run) == BASE.find(first.run)


def test_two_runs_that_fetch_at_once_leave_one_whole_model(s3, tiny, fetched, lab_of):
    labs = [lab_of(ORIGIN, name, store=STORE) for name in ("left", "right")]
    barrier, errors = threading.Barrier(2), []

    def fetch(lab):
        barrier.wait()
        try:
            lab.execute("fetch_base")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=fetch, args=(lab,)) for lab in labs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert BASE.find(labs[0].run) == BASE.find(labs[1].run)
    assert base_of(labs[1].context("train")).digest == resolve(str(tiny)).digest


def test_a_fetch_that_died_goes_on_with_the_files_that_are_missing(
    s3, tiny, fetched, lab_of, monkeypatch
):
    lab = lab_of(ORIGIN, store=STORE)
    counted = BucketSource.fetch

    def dies(self, name, folder):
        if name.endswith(".safetensors"):
            raise RetryableError("the network went away")
        counted(self, name, folder)

    monkeypatch.setattr(BucketSource, "fetch", dies)
    with pytest.raises(RetryableError, match="the network went away"):
        lab.execute("fetch_base")
    assert lab.run.find_evidence("license_audit") is None
    assert BASE.find(lab.run) is None
    monkeypatch.setattr(BucketSource, "fetch", counted)
    kept = {key.rsplit("/", 1)[1] for key in lab.run.store.keys("bases") if key.count("/") == 2}
    fetched.clear()
    lab.execute("fetch_base")
    # Small files are looked at again; of the weights, whose transfer failed, the store had none.
    assert "model.safetensors" not in kept
    assert fetched.count("model.safetensors") == 1
    assert base_of(lab.context("train")).digest == resolve(str(tiny)).digest


def test_a_file_of_other_bytes_in_the_store_is_noticed_by_its_reader(
    s3, fetched, lab_of, tmp_path, monkeypatch
):
    lab = lab_of(ORIGIN, store=STORE)
    lab.execute("fetch_base")
    key = next(key for key in lab.run.store.keys("bases") if key.endswith("model.safetensors"))
    s3.put_object(Bucket="store", Key=f"main/{key}", Body=b"x" * 100)
    new_pod(monkeypatch, tmp_path)
    with pytest.raises(CorruptObject, match=r"model\.safetensors is corrupt"):
        base_of(lab.context("train"))


def test_a_file_that_another_wrote_is_not_taken_for_the_models(s3, tiny, fetched, lab_of):
    lab = lab_of(ORIGIN, store=STORE)
    entry = BucketSource(ORIGIN, "models/team/tiny", print).entry
    lab.run.store.put_bytes(f"bases/{entry}/model.safetensors", b"other")
    with pytest.raises(CorruptObject, match=r"differs from model\.safetensors of s3://models"):
        lab.execute("fetch_base")


def test_a_disk_that_is_too_small_is_named_with_the_volume_that_helps(
    s3, fetched, lab_of, tmp_path, monkeypatch
):
    lab = lab_of(ORIGIN, store=STORE)
    lab.execute("fetch_base")
    new_pod(monkeypatch, tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(RetryableError, match=r"where 0\.0 GB are free; .*pods\.model_cache"):
        base_of(lab.context("train"))


def test_a_shared_volume_holds_the_model_in_place_of_the_store(
    s3, fetched, lab_of, tmp_path, monkeypatch
):
    monkeypatch.setenv("TUNELINE_BASES", str(tmp_path / "volume"))
    lab = lab_of(ORIGIN, store=STORE)
    lab.execute("fetch_base")
    empty_origin(s3)
    new_pod(monkeypatch, tmp_path)
    base = base_of(lab.context("train"))
    assert base.path.parent == tmp_path / "volume"
    assert list(lab.run.store.keys("bases")) == []
    # What pods mount read-only can't have changed unnoticed.
    weights = base.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[::-1])
    with pytest.raises(UserError, match="has changed since the run fetched its base model"):
        base_of(lab.context("train"))


@pytest.mark.parametrize("linkable", [True, False])
def test_a_store_in_a_directory_holds_the_only_copy_and_steps_use_it(
    s3, tiny, fetched, lab_of, monkeypatch, linkable
):
    if not linkable:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("another disk")))
    cached = resolve(ORIGIN, log=lambda _: None)
    fetched.clear()
    lab = lab_of(ORIGIN)
    lab.execute("fetch_base")
    base = base_of(lab.context("train"))
    assert fetched == []
    assert base.path.is_relative_to(lab.root / "store" / "bases")
    same = (base.path / "model.safetensors").samefile(cached.path / "model.safetensors")
    assert same is linkable
    assert base.digest == cached.digest


def test_a_machine_that_has_the_model_in_its_cache_makes_no_second_copy(s3, fetched, lab_of):
    cached = resolve(ORIGIN, log=lambda _: None)
    fetched.clear()
    lab = lab_of(ORIGIN, store=STORE)
    lab.execute("fetch_base")
    assert base_of(lab.context("train")).path == cached.path
    assert fetched == []


def test_a_directory_stays_where_it_is(tiny, fetched, lab_of, tmp_path):
    mine = shutil.copytree(tiny, tmp_path / "mine")
    lab = lab_of(str(mine))
    lab.execute("fetch_base")
    base = base_of(lab.context("train"))
    assert base.path == mine
    assert not (lab.root / "store" / "bases").exists()
    os.utime(mine / "config.json")
    assert base_of(lab.context("train")).digest == base.digest
    (mine / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json has changed since the run fetched"):
        base_of(lab.context("train"))
    shutil.rmtree(mine)
    with pytest.raises(UserError, match="tuneline run fetch-base"):
        base_of(lab.context("train"))


def test_a_run_without_the_step_fetches_the_model_itself(s3, fetched, lab_of, tiny):
    lab = lab_of(ORIGIN, store=STORE)
    assert base_of(lab.context("train")).digest == resolve(str(tiny)).digest
    assert fetched
