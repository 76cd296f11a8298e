"""The newest complete checkpoint is what a resumed training gets, or none."""

import pytest

from tuneline.store import open_store
from tuneline.training.loop.callbacks import LiveCheckpoints
from tuneline.training.train import fingerprint


@pytest.fixture
def place(tmp_path):
    store = open_store((tmp_path / "store").as_uri())
    return LiveCheckpoints(store, "runs/r/work/train", fingerprint({"lr": 1}))


def folder(tmp_path, name, text):
    path = tmp_path / name
    (path / "sub").mkdir(parents=True)
    (path / "sub" / "weights.bin").write_text(text)
    (path / "state.json").write_text(text * 2)
    return path


def test_the_newest_checkpoint_comes_back_whole(tmp_path, place):
    place.save(5, {"trainer": folder(tmp_path, "a", "five")})
    place.save(10, {"trainer": folder(tmp_path, "b", "ten"), "evaluated": tmp_path / "a"})
    assert place.restore(tmp_path / "back") == 10
    assert (tmp_path / "back" / "trainer" / "sub" / "weights.bin").read_text() == "ten"
    assert (tmp_path / "back" / "evaluated" / "state.json").read_text() == "fivefive"
    assert not any("step-000005" in key for key in place.store.keys("runs"))


def test_nothing_there_and_other_settings_start_anew(tmp_path, place):
    assert place.restore(tmp_path / "back") is None
    place.save(5, {"trainer": folder(tmp_path, "a", "five")})
    other = LiveCheckpoints(place.store, place.prefix, fingerprint({"lr": 2}))
    assert other.restore(tmp_path / "back") is None
    assert place.restore(tmp_path / "back") == 5


def test_an_upload_cut_short_leaves_the_one_before(tmp_path, place, monkeypatch):
    place.save(5, {"trainer": folder(tmp_path, "a", "five")})
    later = folder(tmp_path, "b", "ten")
    put = place.store.put_file

    def dies(key, path, **options):
        if key.endswith("weights.bin"):
            raise KeyboardInterrupt
        return put(key, path, **options)

    monkeypatch.setattr(place.store, "put_file", dies)
    with pytest.raises(KeyboardInterrupt):
        place.save(10, {"trainer": later})
    monkeypatch.setattr(place.store, "put_file", put)
    assert place.restore(tmp_path / "back") == 5


def test_a_damaged_checkpoint_is_not_resumed(tmp_path, place):
    place.save(5, {"trainer": folder(tmp_path, "a", "five")})
    damaged = tmp_path / "store" / place.prefix / "step-000005" / "trainer" / "state.json"
    damaged.write_text("something else")
    assert place.restore(tmp_path / "back") is None


def test_clear_leaves_nothing(tmp_path, place):
    place.save(5, {"trainer": folder(tmp_path, "a", "five")})
    place.clear()
    assert list(place.store.keys("runs")) == []
    assert place.restore(tmp_path / "back") is None
