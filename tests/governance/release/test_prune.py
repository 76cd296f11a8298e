"""Retention: what goes, why the rest stays, and what is left when it is killed or meets others."""

import json
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from tests.lab.dying_store import DyingStore, Killed
from tests.lab.releases import log_release

from tuneline.artifacts.governance import Manifest, ManifestFile
from tuneline.artifacts.release_log import Canary, Waived
from tuneline.artifacts.releases import read_release
from tuneline.cli import main
from tuneline.config import build_config
from tuneline.errors import TunelineError, UserError
from tuneline.governance.release.manifest import write_manifest
from tuneline.governance.release.pointer import read_pointer, record
from tuneline.governance.release.prune import Pruning, Retention, claim_release
from tuneline.governance.release.rollback import roll_back
from tuneline.governance.release.verify import examine
from tuneline.run import Run
from tuneline.store import open_store

# Everything that is there was written before it.
LATER = datetime.now(UTC) + timedelta(days=1)
DATASET = "data/distribution_balancing/dataset.parquet"
FILES = ("data/x/rows.parquet", DATASET, "training/train/evidence.json")
CHECKPOINT = "training/train/checkpoints/step-1/adapter.bin"


def leave_run(store, run_id, source="rows.jsonl", *, version=True):
    """A run with some files, and its version as lineage leaves it; the version's manifest."""
    config = build_config({"data": {"source": source}}, {"name": "model"})
    run = Run.create(store.uri, run_id, config, {})
    for name in (*FILES, CHECKPOINT):
        store.put_bytes(run.key(name), name.encode())
    if not version:
        return ""
    prefix = f"models/model/{run_id}"
    named = {name: store.put_bytes(f"{prefix}/{name}", b"w") for name in ("model.gguf", "card.md")}
    files = [ManifestFile(name=n, sha256=ref.sha256, bytes=1) for n, ref in named.items()]
    return write_manifest(store, prefix, Manifest(name="model", version=run_id, files=files))


def leave_release(store, version, *events):
    digest = leave_run(store, version)
    log_release(store, "model", version, digest)
    if events:
        record(read_pointer(store, "model"), version, digest, events)


def prune(store, *, keep=2, before=LATER):
    pruning = Pruning(store, Retention(before, keep))
    fates = list(pruning.fates())
    return {
        fate.run: pruning.carry_out(fate, "ada") if fate.kind != "kept" else fate for fate in fates
    }


WAIVED = Waived(item="determinism", reason="known", by="ada")
STARTED = Canary(share=0.1, outcome="started", summary="it was released")


@pytest.fixture
def store(any_store):
    """A store with a run of each kind."""
    leave_run(any_store, "loser")
    leave_run(any_store, "crashed", version=False)
    any_store.delete(["runs/crashed/config.json"])
    leave_run(any_store, "source", version=False)
    leave_run(any_store, "tried", version=False)
    note = {"run": "tried", "at": f"{datetime.now(UTC):%Y-%m-%d}T00:00:00Z"}
    any_store.put_bytes("retraining/model/tried/x.json", json.dumps(note).encode())
    leave_release(any_store, "v1", WAIVED)
    leave_release(any_store, "v2")
    leave_release(any_store, "v3", STARTED)
    leave_release(any_store, "v4")
    leave_release(any_store, "v5")
    leave_run(any_store, "user", "s3://b/runs/source/data/x/rows.parquet", version=False)
    claim_release(Run.open(any_store.uri_of("runs/user")))
    return any_store


def test_what_goes_and_why_the_rest_stays(store):
    expected = {
        "crashed": ("unreleased", "ended unreleased"),
        "loser": ("unreleased", "ended unreleased"),
        "source": ("unreleased", "ended unreleased"),
        "tried": ("kept", "the budget of this month"),
        "user": ("kept", "its release has begun; run promote again"),
        "v1": ("copies", "it was released with a waiver"),
        "v2": ("superseded", "a release that later ones have superseded"),
        "v3": ("copies", "its canary is undecided"),
        "v4": ("copies", "a rollback of model goes back to it"),
        "v5": ("copies", "released to production"),
    }
    young = {f.run: f for f in Pruning(store, Retention(LATER - timedelta(9), 2)).fates()}
    assert {fate.kind for fate in young.values()} == {"kept"}
    before = list(store.keys("runs"))
    fates = prune(store)
    assert {run: fate.kind for run, fate in fates.items()} == {
        r: k for r, (k, _) in expected.items()
    }
    for run, (_, why) in expected.items():
        assert fates[run].why.startswith(why), run
    left = [*store.keys("runs"), *store.keys("models")]
    assert not [key for key in left if {"loser", "crashed", "source"} & {*key.split("/")}]
    gone = {key for key in before if key not in left and "/v" in key}
    assert gone == {*(f"runs/v{n}/{CHECKPOINT}" for n in range(1, 6)), f"runs/v2/{FILES[0]}"}
    assert {key for key in left if key.startswith("models/model/v2/")} == {
        f"models/model/v2/{name}" for name in ("card.md", "manifest.json", "release.jsonl")
    }
    assert fates["v2"].bytes == len(FILES[0]) + len(CHECKPOINT) + len("w")
    again = prune(store)
    assert {fate.kind for fate in again.values()} == {"kept"}
    assert "v2" in again


def test_settings_of_a_run_that_stays_keep_the_run_that_they_name(any_store):
    leave_run(any_store, "source", version=False)
    leave_release(any_store, "v1")
    leave_run(any_store, "v2", f"{any_store.uri}/runs/source/{DATASET}")
    manifest = json.loads(any_store.get_bytes("models/model/v2/manifest.json"))
    assert manifest["version"] == "v2"
    log_release(any_store, "model", "v2", any_store.rehash("models/model/v2/manifest.json").sha256)
    fates = prune(any_store)
    assert (fates["source"].kind, fates["source"].why) == ("kept", "the settings of v2 name it")


def test_every_version_still_verifies_and_says_what_is_gone(store):
    prune(store)
    for version in ("v1", "v2", "v3", "v4", "v5"):
        found = examine(store.uri_of(f"models/model/{version}/manifest.json"))
        assert found.differences == []
        said = [note for note in found.unchecked if "ada deleted them" in note]
        assert len(said) == (version == "v2")
    with pytest.raises(UserError, match=r"was withdrawn at .* by ada: pruned"):
        roll_back(store, "model", "v2", by=None, reason="back")
    roll_back(store, "model", "v4", by=None, reason="back")


def test_a_missing_weight_that_nobody_pruned_is_a_difference(store):
    store.delete(["models/model/v2/model.gguf"])
    assert "is missing" in examine(store.uri_of("models/model/v2/manifest.json")).differences[0]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_leaves_no_run_that_reads_as_whole_and_the_next_prune_ends_it(tmp_path, moment):
    store, kept = open_store((tmp_path / "store").as_uri()), tmp_path / "kept"
    leave_run(store, "loser")
    for version in ("v1", "v2", "v3"):
        leave_release(store, version)
    shutil.copytree(store.root, kept)
    for number in range(1, 40):
        shutil.rmtree(store.root)
        shutil.copytree(kept, store.root)
        whole = set(store.keys("runs/loser"))
        try:
            prune(DyingStore(store, number, moment, only_writes=True))
            died = False
        except Killed:
            died = True
        if store.exists("runs/loser/config.json"):
            assert whole <= {*store.keys("runs/loser")}
        else:
            with pytest.raises(UserError, match="there is no run"):
                Run.open(store.uri_of("runs/loser"))
        # The age of what is left counts from the kill.
        prune(store)
        assert not [*store.keys("runs/loser"), *store.keys("models/model/loser")]
        assert not store.exists("models/model/v1/model.gguf")
        for version in ("v1", "v3"):
            assert examine(store.uri_of(f"models/model/{version}/manifest.json")).differences == []
        if not died:
            break
    assert number > 5
    assert not died


def test_what_a_killed_prune_claimed_is_ended_however_young_it_is(any_store):
    leave_run(any_store, "loser")
    with pytest.raises(Killed):
        prune(DyingStore(any_store, 2, "after", only_writes=True))
    fates = prune(any_store, before=LATER - timedelta(9))
    assert fates["loser"].why == "an earlier prune has begun to delete it"
    assert list(any_store.keys("runs")) == list(any_store.keys("models")) == []


def test_what_a_killed_prune_withdrew_is_ended_however_young_its_log_is(any_store):
    for version in ("v1", "v2", "v3"):
        leave_release(any_store, version)
    # The pointer and the log.
    with pytest.raises(Killed):
        prune(DyingStore(any_store, 2, "after", only_writes=True))
    assert any_store.exists("models/model/v1/model.gguf")
    fates = prune(any_store, before=LATER - timedelta(9))
    assert fates["v1"].why == "an earlier prune has begun to delete it"
    assert not any_store.exists("models/model/v1/model.gguf")
    again = prune(any_store, before=LATER - timedelta(9))
    assert (again["v1"].kind, again["v1"].why) == ("kept", "only its documents are left")


def test_a_release_that_begins_after_the_listing_wins(any_store):
    leave_run(any_store, "late")
    pruning = Pruning(any_store, Retention(LATER, 2))
    (fate,) = pruning.fates()
    claim_release(Run.open(any_store.uri_of("runs/late")))
    assert pruning.carry_out(fate, "ada").why == "its release has begun meanwhile"
    assert any_store.exists("models/model/late/manifest.json")


def test_a_release_after_the_claim_is_refused(any_store):
    leave_run(any_store, "late")
    run = Run.open(any_store.uri_of("runs/late"))
    with pytest.raises(Killed):
        prune(DyingStore(any_store, 1, "after", only_writes=True))
    with pytest.raises(UserError, match="has begun to delete it; start a new run"):
        claim_release(run)


def test_a_deletion_while_a_rollback_looks_at_the_files_lets_nothing_move(any_store, monkeypatch):
    for version in ("v1", "v2", "v3"):
        leave_release(any_store, version)
    look = "tuneline.governance.release.rollback.served_differences"
    monkeypatch.setattr(look, lambda *place: prune(any_store) and [])
    with pytest.raises(TunelineError):
        roll_back(any_store, "model", "v1", by=None, reason="back")
    assert read_release(any_store, "model").version == "v3"


def test_a_rollback_between_listing_and_deletion_keeps_its_version(any_store):
    for version in ("v1", "v2", "v3"):
        leave_release(any_store, version)
    pruning = Pruning(any_store, Retention(LATER, 1))
    fates = {fate.run: fate for fate in pruning.fates()}
    assert fates["v1"].kind == "superseded"
    roll_back(any_store, "model", "v1", by=None, reason="back")
    assert pruning.carry_out(fates["v1"], "ada").kind == "kept"
    assert any_store.exists("models/model/v1/model.gguf")
    assert read_release(any_store, "model").version == "v1"


def test_the_command_lists_first_and_deletes_when_asked(any_store, monkeypatch, capsys):
    leave_run(any_store, "loser")
    command = ["run", "prune", "--store", any_store.uri]
    for wrong in (["--older-than", "0d"], ["--older-than", "3 weeks"], ["--keep", "0"]):
        assert main([*command, *wrong]) == 2
    assert main(command) == 0
    assert "kept        loser  stays: last written" in capsys.readouterr().out
    monkeypatch.setattr(
        "tuneline.governance.release.prune.retention", lambda days, keep: Retention(LATER, keep)
    )
    assert main(command) == 0
    said = capsys.readouterr()
    assert "unreleased  loser" in said.out
    assert "would be freed" in said.out
    assert "nothing was deleted" in said.err
    assert any_store.exists("runs/loser/config.json")
    assert main([*command, "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["kind"] == "unreleased"
    assert list(any_store.keys("runs")) == []
