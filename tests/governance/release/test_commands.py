"""`tuneline verify`, `lineage` and `diff` on real releases."""

import json
import xml.etree.ElementTree as ET

import pytest
from tests.governance.conftest import HOLDS, MEASURED
from tests.lab.releases import HOSTILE, forge, hostile
from tests.lab.signatures import key_pair

from tuneline.artifacts.release_log import RolledBack, Withdrawn
from tuneline.cli import main
from tuneline.evidence import measure
from tuneline.governance.release.pointer import last_move, read_pointer, record
from tuneline.run import Run
from tuneline.store import open_store


@pytest.fixture
def two(finished_lab, monkeypatch):
    """A store with the releases `test` and `second`, which differ in what a test knows."""
    lab = finished_lab(name="model", reason="the first one")
    lab.leave("holdout_performance", {}, [measure("accuracy", 0.8, "share", ">=", 0.5), MEASURED])
    lab.execute("lineage")
    lab.execute("promote")
    first = lab.run
    config = first.config.model_copy(
        update={"training": first.config.training.model_copy(update={"epochs": 7.0})}
    )
    lab.run = Run.create(first.store.uri, "second", config, {})
    lab.run.meta.update(code={**first.meta["code"], "commit": "feedface" * 5}, started_by="bob")
    for key in list(first.store.keys(first.prefix)):
        if "/lineage/" not in key and "/promote/" not in key and key.count("/") > 2:
            raw = first.store.get_bytes(key).replace(b"runs/test/", b"runs/second/")
            first.store.put_bytes(key.replace("runs/test/", "runs/second/"), raw)
    lab.leave("holdout_performance", {}, [measure("accuracy", 0.9, "share", ">=", 0.5), MEASURED])
    data = {"version": "e" * 64, "rows": 120}
    lab.leave("final_audit", {"dataset.json": json.dumps(data)}, [HOLDS])
    lab.execute("lineage")
    lab.execute("promote")
    monkeypatch.setenv("TUNELINE_STORE", first.store.uri)
    return lab


def manifest_uri(lab, version="second"):
    return f"{lab.run.store.uri}/models/model/{version}/manifest.json"


def test_verify_says_what_differs(two, capsys):
    assert main(["verify", manifest_uri(two)]) == 0
    assert "every hash agrees" in capsys.readouterr().out
    (two.root / "store/models/model/test/lora.json").write_text("{}")
    assert main(["verify", manifest_uri(two)]) == 0
    assert main(["verify", manifest_uri(two, "test")]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "lora.json is corrupt" in line
    store, key = two.run.store, "models/model/test/manifest.json"
    store.put_bytes(key, store.get_bytes(key).replace(b"the first one", b"the other one"))
    assert main(["verify", manifest_uri(two)]) == 1
    assert "test/manifest.json is corrupt" in capsys.readouterr().err


def test_verify_follows_no_name_out_of_its_folder(any_store, capsys, monkeypatch, tmp_path):
    """Nothing is written on the machine of whoever verifies, with a key or without."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    _, public = key_pair(tmp_path, "ours")
    before = [p for p in tmp_path.rglob("*") if "store" not in p.parts]
    cases = [(kind, "../../../../../outside") for kind in HOSTILE]
    cases += [("a file", bad) for bad in ("/outside", "a\\..\\b", "a//b", "a\0b", "..")]
    for number, (kind, bad) in enumerate(cases):
        version = f"v{number}"
        forge(any_store, hostile(kind, bad, version=version), version=version)
        uri = any_store.uri_of(f"models/a/{version}/manifest.json")
        for options in ([], ["--public-key", str(public)]):
            assert main(["verify", uri, *options]) == 1, (kind, bad)
            assert uri in capsys.readouterr().err
    assert [p for p in tmp_path.rglob("*") if "store" not in p.parts] == before


def test_the_ancestry_as_text_and_as_a_drawing(two, capsys, tmp_path):
    pointed = read_pointer(two.run.store, "model", "staging")
    previous, follows = last_move(pointed)
    sha256 = two.run.store.rehash("models/model/test/manifest.json").sha256
    back = RolledBack(previous_version=previous, follows=follows, by="eve", reason="too <slow>")
    record(pointed, "test", sha256, [back])
    gone = Withdrawn(by="eve", reason="answers in the wrong language")
    record(read_pointer(two.run.store, "model", "staging"), "second", sha256, [gone])
    assert main(["verify", manifest_uri(two)]) == 0
    capsys.readouterr()

    drawing = tmp_path / "model.svg"
    assert main(["lineage", "model", "--svg", str(drawing)]) == 0
    shown = capsys.readouterr().out
    titles = [line for line in shown.splitlines() if line[0] in "├└"]
    assert [title.split()[1] for title in titles] == ["test", "second", "test"]
    assert "rolled back to" in titles[0]
    assert titles[0].endswith("in service")
    for fact in ("120 rows", "106 rows", "feedfacefeed", "parent   test", "too <slow>"):
        assert fact in shown
    assert "withdrawn: answers in the wrong language" in shown
    assert 'url("http' not in drawing.read_text()
    elements = (e for e in ET.parse(drawing).iter() if e.tag.endswith("}text"))
    texts = [element.text.replace("\xa0", " ") for element in elements if element.text]
    assert sum("released" in text for text in texts) == 2
    assert any("too <slow>" in text for text in texts)


def test_what_changed_between_two_releases(two, capsys):
    assert main(["diff", "model/test", "model", "--json"]) == 0
    found = {
        (change["section"], change["name"]): (change["before"], change["after"])
        for change in json.loads(capsys.readouterr().out)
    }
    first = type(two.run.config.training).model_fields["epochs"].default
    assert found == {
        ("data", "version"): ("d" * 64, "e" * 64),
        ("data", "rows"): (106, 120),
        ("settings", "training.epochs"): (first, 7.0),
        ("code", "commit"): ("c0ffee" * 6, "feedface" * 5),
        ("metrics", "holdout_performance.accuracy"): (0.8, 0.9),
    }
    assert main(["diff", manifest_uri(two, "test"), manifest_uri(two)]) == 0
    shown = capsys.readouterr().out
    assert "model test → model second" in shown
    assert "  holdout_performance.accuracy: 0.8 → 0.9  (+0.1)" in shown
    assert main(["diff", "model", "model/second"]) == 0
    assert "nothing differs" in capsys.readouterr().out


def test_what_is_not_there_is_the_users_error(two, capsys, monkeypatch):
    for arguments, why in (
        (["lineage", "nobody"], "has no release of 'nobody'"),
        (["diff", "model/none", "model"], "has no version 'none'"),
        (["diff", "nobody", "model"], "has no release of 'nobody'"),
        (["diff", "file:///x/models/m/1/other.json", "model"], "is not the URI of a manifest.json"),
    ):
        assert main(arguments) == 2
        assert why in capsys.readouterr().err
    monkeypatch.delenv("TUNELINE_STORE")
    assert main(["diff", "a", "b"]) == 2
    assert "set TUNELINE_STORE" in capsys.readouterr().err


def test_a_store_that_is_elsewhere_verifies_too(two, tmp_path):
    moved = tmp_path / "moved"
    two.root.joinpath("store").rename(moved)
    uri = f"{open_store(moved.as_uri()).uri}/models/model/second/manifest.json"
    assert main(["verify", uri]) == 0
