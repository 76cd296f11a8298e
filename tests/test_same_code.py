"""A step refuses code of another commit than that of its DAG in production, and warns elsewhere."""

import pytest
from tests.lab.runs import Lab

from tuneline.artifacts.governance import find_packages
from tuneline.catalogue import get_step
from tuneline.environment import code_identity, other_code
from tuneline.errors import UserError
from tuneline.evidence import measure
from tuneline.run import Run
from tuneline.step import execute

CLEAN = {"commit": "a" * 40, "dirty": False, "library_sha256": "1" * 64, "note": "a clean checkout"}


@pytest.fixture
def carried_out(tmp_path, monkeypatch):
    """Carry out a step that measures nothing, by an image's code in the run of a DAG's code."""

    def run(ctx):
        return ctx.conclude("measured", [measure("m", 0, "rows", "==", 0)])

    def make(dag, image, profile="production"):
        lab = Lab(tmp_path / profile, {"profile": profile})
        Run.create(lab.run.store.uri, "run", lab.run.config, {"code": dag})
        monkeypatch.setattr("tuneline.step.own_code", lambda: image)
        module = get_step("cold_start").module
        monkeypatch.setattr(f"{module}.run", run)
        return execute("cold_start", lab.run.store.uri_of("runs/run"))

    return make


@pytest.mark.parametrize(
    ("dag", "image", "sentence"),
    [
        ({}, {}, None),
        ({}, {"commit": "b" * 40}, "the step's code is of commit bbbbbbbbbbbb, and the DAG"),
        ({}, {"commit": None, "library_sha256": None}, "the step's code names no commit"),
        ({}, {"library_sha256": "2" * 64}, "its files differ from the DAG's"),
        ({}, {"dirty": True}, "the code of this step differs from its commit"),
        ({"dirty": True}, {}, "the code of the DAG that made the run differs from its commit"),
        ({"commit": None}, {"commit": None}, "the code of the DAG that made the run is of no"),
    ],
    ids="same commit image files dirty dirty-DAG none".split(),
)
def test_other_or_unknown_code_is_refused_in_production_and_a_laptop_warns_of_other_code(
    carried_out, capsys, dag, image, sentence
):
    dag, image = {**CLEAN, **dag}, {**CLEAN, **image}
    assert carried_out(dag, image, "laptop").verdict == "pass"
    warned = capsys.readouterr().err
    if sentence is None or "differs from its" in sentence or "is of no" in sentence:
        assert "warning" not in warned
    else:
        assert f"warning: {other_code(dag, image)}" in warned
    if sentence is None:
        assert carried_out(dag, image).verdict == "pass"
        return
    with pytest.raises(UserError) as refusal:
        carried_out(dag, image)
    assert str(refusal.value).startswith("cold_start is not carried out under profile: production:")
    assert sentence in str(refusal.value)


def test_a_tarball_of_other_files_is_other_code():
    tarball = {"commit": None, "library_sha256": "1" * 64}
    assert other_code(tarball, tarball) is None
    sentence = other_code(tarball, {**tarball, "library_sha256": "2" * 64})
    assert "differ from those of the DAG" in str(sentence)


def test_an_image_states_the_changes_that_it_was_built_with(tmp_path, monkeypatch):
    for folder in ("include/tuneline", "dags"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "include/tuneline/a.py").write_text("1")
    monkeypatch.setenv("TUNELINE_IMAGE_COMMIT", "c" * 40)
    clean = code_identity(tmp_path)
    assert (clean["source"], clean["commit"], clean["dirty"]) == ("image", "c" * 40, False)
    monkeypatch.setenv("TUNELINE_IMAGE_COMMIT", f"{'c' * 40}-dirty")
    dirty = code_identity(tmp_path)
    assert (dirty["commit"], dirty["dirty"]) == ("c" * 40, True)
    # An image lacks dags/, its library is the same.
    (tmp_path / "dags/d.py").write_text("2")
    more = code_identity(tmp_path)
    assert more["library_sha256"] == clean["library_sha256"]
    assert more["tree_sha256"] != clean["tree_sha256"]


def test_evidence_states_its_code_and_the_run_keeps_all_packages(tmp_path):
    lab = Lab(tmp_path, {})
    lab.leave("cold_start", {}, [measure("m", 0, "rows", "==", 0)])
    stated = lab.run.entry("cold_start").environment
    assert len(stated["code"]["library_sha256"]) == 64
    every = find_packages(lab.run, stated)
    assert {"pydantic", "pytest"} <= every.keys()
    assert stated["packages"].items() <= every.items()
