"""The pointer: moved by one writer at a time, completed after a kill, gone back with a reason."""

import json
import threading

import pytest
from tests.lab.dying_store import DyingStore, Killed

from tuneline.artifacts.governance import Manifest
from tuneline.artifacts.release_log import Approved, Canary, Released, Withdrawn
from tuneline.artifacts.releases import previous_version, read_release
from tuneline.cli import main
from tuneline.errors import UserError
from tuneline.governance.release.manifest import write_manifest
from tuneline.governance.release.pointer import complete, last_move, read_pointer, record
from tuneline.governance.release.rollback import roll_back
from tuneline.governance.release.verify import verify
from tuneline.store import Changed, CorruptObject, FileStore

APPROVED = Approved(subject="approve_release", decision="Approve", by="alice", answered_at="now")


class House:
    """A model in a store whose versions have one file each, and what happens to them."""

    def __init__(self, store):
        self.store = store

    def manifest(self, version):
        prefix = f"models/m/{version}"
        ref = self.store.put_bytes(f"{prefix}/model.gguf", version.encode())
        file = {"name": "model.gguf", "sha256": ref.sha256, "bytes": ref.bytes}
        return write_manifest(self.store, prefix, Manifest(name="m", version=version, files=[file]))

    def release(self, version, *before, store=None, pointed=None):
        store = store or self.store
        sha256 = self.manifest(version)
        pointed = pointed or read_pointer(store, "m")
        complete(pointed)
        previous, follows = last_move(pointed)
        event = Released(previous_version=previous, follows=follows, run=f"runs/{version}")
        return record(pointed, version, sha256, [*before, event])

    def happen(self, version, event):
        return record(read_pointer(self.store, "m"), version, self.manifest(version), [event])

    def back(self, version=None, by="bob", reason="too slow"):
        return roll_back(self.store, "m", version, by=by, reason=reason)

    @property
    def released(self):
        return read_release(self.store, "m").version

    def lines(self, version):
        raw = self.store.get_bytes(f"models/m/{version}/release.jsonl").decode()
        return [json.loads(line) for line in raw.splitlines()]

    def log(self, version):
        return [line["event"] for line in self.lines(version)]

    def verify(self, version):
        return verify(self.store.uri_of(f"models/m/{version}/manifest.json"))


@pytest.fixture
def house(any_store):
    return House(any_store)


def test_every_kind_of_event_is_chained_and_verified(house):
    house.release("a", APPROVED)
    house.release("b", APPROVED)
    house.happen("b", Canary(share=0.05, outcome="withdrawn", summary="slower by a half"))
    house.back("a")
    house.happen("b", Withdrawn(by="bob", reason="answers too slowly under load"))
    assert house.log("a") == ["approved", "released", "rolled_back"]
    assert house.log("b") == ["approved", "released", "canary", "withdrawn"]
    pointer = read_release(house.store, "m")
    assert (pointer.version, pointer.previous_version) == ("a", "b")
    moves = [(move.version, move.event) for move in pointer.history]
    assert moves == [("a", "released"), ("b", "released"), ("a", "rolled_back")]
    assert {version: end.lines for version, end in pointer.heads.items()} == {"a": 3, "b": 4}
    assert house.verify("a") == house.verify("b") == []


def test_the_second_writer_changes_nothing(house):
    for version, loser in (("a", "x"), ("b", "c")):
        seen = read_pointer(house.store, "m")
        house.release(version, pointed=seen)
        before = house.store.get_bytes("models/m/production.json")
        with pytest.raises(Changed):
            house.release(loser, pointed=seen)
        assert house.store.get_bytes("models/m/production.json") == before
        assert not house.store.exists(f"models/m/{loser}/release.jsonl")
    assert house.verify("b") == []


def test_one_of_many_threads_wins(any_store):
    house = House(any_store)
    house.release("a")
    seen, won, lost = read_pointer(any_store, "m"), [], []
    for number in range(6):
        house.manifest(f"v{number}")

    def race(version):
        try:
            house.release(version, pointed=seen)
            won.append(version)
        except Changed:
            lost.append(version)

    threads = [threading.Thread(target=race, args=(f"v{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 5)
    assert read_release(any_store, "m").version == won[0]
    assert house.verify(won[0]) == []


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_any_operation_the_next_try_completes_it_once(house, moment):
    """After each kill another version is released first, as another run might do."""
    house.release("first", APPROVED)
    killed, expected = 0, ["first"]
    for number in range(1, 60):
        version = f"v{number}"
        try:
            house.release(version, APPROVED, store=DyingStore(house.store, number, moment))
        except Killed:
            killed += 1
            house.release(f"other{number}")
        else:
            expected.append(version)
            break
        moved = [move.version for move in read_release(house.store, "m").history]
        if version not in moved:
            house.release(version, APPROVED)
            moved.append(version)
        expected = moved
        assert moved.count(version) == 1
        assert house.log(version) == ["approved", "released"]
        assert house.verify(version) == []
    assert killed >= 5
    assert [move.version for move in read_release(house.store, "m").history] == expected


def test_nothing_is_recorded_of_a_model_without_a_release(house):
    with pytest.raises(UserError, match="m has no release yet"):
        house.happen("a", Withdrawn(reason="never served"))
    assert not house.store.exists("models/m/a/release.jsonl")


def test_a_log_with_lines_that_the_pointer_does_not_know_is_refused(house):
    house.release("a")
    house.store.put_bytes("models/m/b/release.jsonl", b'{"event": "released"}\n')
    with pytest.raises(CorruptObject, match=r"b/release\.jsonl does not end where"):
        house.release("b")


def test_a_reason_with_another_line_separator_is_one_line(house):
    house.release("a")
    house.happen("a", Withdrawn(reason="first\u2028second\x85third"))
    assert house.verify("a") == []


@pytest.fixture
def abc(house):
    for version in "abc":
        house.release(version)
    return house


def test_the_release_before_is_released_again_and_the_log_says_who_and_why(abc):
    abc.back()
    assert abc.released == "b"
    line = abc.lines("b")[-1]
    assert (line["event"], line["by"], line["reason"]) == ("rolled_back", "bob", "too slow")
    assert line["previous_version"] == "c"
    for version in "abc":
        assert abc.verify(version) == []


def test_what_was_left_is_no_fallback(abc):
    assert previous_version(read_release(abc.store, "m")) == "b"
    abc.back()
    # Not c, which nobody wants to be served any more.
    assert previous_version(read_release(abc.store, "m")) == "a"
    abc.back()
    assert abc.released == "a"
    assert previous_version(read_release(abc.store, "m")) is None
    with pytest.raises(UserError, match="has no release before it"):
        abc.back()
    # Forward again is a move like any other.
    abc.back("c")
    assert abc.released == "c"
    assert previous_version(read_release(abc.store, "m")) == "a"


def test_a_version_that_can_not_be_gone_back_to(abc, tmp_path):
    for version, why in (("c", "is released already"), ("x", "never released.*were a, b, c")):
        with pytest.raises(UserError, match=why):
            abc.back(version)
        assert abc.released == "c"
    with pytest.raises(UserError, match="holds no release of m in production"):
        House(FileStore(tmp_path / "empty")).back()


def test_files_are_compared_first(abc):
    abc.store.put_bytes("models/m/b/model.gguf", b"other")
    with pytest.raises(UserError, match=r"stays at c.*model\.gguf is corrupt"):
        abc.back()
    abc.store.delete_prefix("models/m/a")
    with pytest.raises(UserError, match="a"):
        abc.back("a")
    assert abc.released == "c"


def test_a_withdrawn_version_is_not_served_again(abc):
    abc.happen("b", Withdrawn(by="alice", reason="it answers with names of customers"))
    with pytest.raises(UserError, match=r"withdrawn at .* by alice: it answers with names"):
        abc.back()
    assert abc.released == "c"


def test_a_release_meanwhile_wins(abc, monkeypatch):
    def late(*_):
        raise Changed("production.json")

    monkeypatch.setattr("tuneline.governance.release.rollback.record", late)
    with pytest.raises(UserError, match="was released meanwhile"):
        abc.back()


def test_the_command(abc, capsys):
    arguments = ["rollback", "m", "a", "--by", "bob", "--reason", "b is wrong too"]
    assert main([*arguments, "--store", abc.store.uri]) == 0
    assert "m a is released again" in capsys.readouterr().out
    assert abc.lines("a")[-1]["reason"] == "b is wrong too"
    assert main(["rollback", "nobody", "--store", abc.store.uri]) == 2
    assert "holds no release of nobody in production" in capsys.readouterr().err
