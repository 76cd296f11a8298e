"""Going back: to a version that was released, whose files are whole; logged with who and why."""

import json

import pytest
from tests.lab.releases import log_release

from tuneline.artifacts.governance import Manifest
from tuneline.artifacts.release_log import Withdrawn
from tuneline.artifacts.releases import previous_version, read_release
from tuneline.cli import main
from tuneline.errors import UserError
from tuneline.governance.release.manifest import write_manifest
from tuneline.governance.release.pointer import read_pointer, record
from tuneline.governance.release.rollback import roll_back
from tuneline.governance.release.verify import verify
from tuneline.store import Changed, FileStore


class House:
    """A model in a store, whose versions have one file each."""

    def __init__(self, store):
        self.store = store

    def release(self, version):
        prefix = f"models/m/{version}"
        ref = self.store.put_bytes(f"{prefix}/model.gguf", version.encode())
        file = {"name": "model.gguf", "sha256": ref.sha256, "bytes": ref.bytes}
        stated = Manifest(name="m", version=version, files=[file])
        log_release(self.store, "m", version, write_manifest(self.store, prefix, stated))

    def back(self, version=None, by="bob", reason="too slow"):
        return roll_back(self.store, "m", version, by=by, reason=reason)

    @property
    def released(self):
        return read_release(self.store, "m").version

    def last_line(self, version):
        raw = self.store.get_bytes(f"models/m/{version}/release.jsonl").decode()
        return json.loads(raw.splitlines()[-1])


@pytest.fixture
def house(any_store):
    made = House(any_store)
    for version in "abc":
        made.release(version)
    return made


def test_the_release_before_is_released_again_and_the_log_says_who_and_why(house):
    house.back()
    assert house.released == "b"
    line = house.last_line("b")
    assert (line["event"], line["by"], line["reason"]) == ("rolled_back", "bob", "too slow")
    assert line["previous_version"] == "c"
    for version in "abc":
        assert verify(house.store.uri_of(f"models/m/{version}/manifest.json")) == []


def test_what_was_left_is_no_fallback(house):
    assert previous_version(read_release(house.store, "m")) == "b"
    house.back()
    # Not c, which nobody wants to be served any more.
    assert previous_version(read_release(house.store, "m")) == "a"
    house.back()
    assert house.released == "a"
    assert previous_version(read_release(house.store, "m")) is None
    with pytest.raises(UserError, match="has no release before it"):
        house.back()
    # Forward again is a move like any other.
    house.back("c")
    assert house.released == "c"
    assert previous_version(read_release(house.store, "m")) == "a"


def test_a_version_that_can_not_be_gone_back_to(house, tmp_path):
    for version, why in (("c", "is released already"), ("x", "never released.*were a, b, c")):
        with pytest.raises(UserError, match=why):
            house.back(version)
        assert house.released == "c"
    with pytest.raises(UserError, match="holds no release of m"):
        House(FileStore(tmp_path / "empty")).back()


def test_files_are_compared_first(house):
    house.store.put_bytes("models/m/b/model.gguf", b"other")
    with pytest.raises(UserError, match=r"stays at c.*model\.gguf is corrupt"):
        house.back()
    house.store.delete_prefix("models/m/a")
    with pytest.raises(UserError, match="a"):
        house.back("a")
    assert house.released == "c"


def test_a_withdrawn_version_is_not_served_again(house):
    event = Withdrawn(by="alice", reason="it answers with names of customers")
    pointed = read_pointer(house.store, "m")
    record(pointed, "b", "unused", [event])
    with pytest.raises(UserError, match=r"withdrawn at .* by alice: it answers with names"):
        house.back()
    assert house.released == "c"


def test_a_release_meanwhile_wins(house, monkeypatch):
    def late(*_):
        raise Changed("production.json")

    monkeypatch.setattr("tuneline.governance.release.rollback.record", late)
    with pytest.raises(UserError, match="was released meanwhile"):
        house.back()


def test_the_command(house, capsys):
    arguments = ["rollback", "m", "a", "--by", "bob", "--reason", "b is wrong too"]
    assert main([*arguments, "--store", house.store.uri]) == 0
    assert "m a is released again" in capsys.readouterr().out
    assert house.last_line("a")["reason"] == "b is wrong too"
    assert main(["rollback", "nobody", "--store", house.store.uri]) == 2
    assert "holds no release of nobody" in capsys.readouterr().err
