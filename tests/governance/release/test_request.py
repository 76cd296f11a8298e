"""What an approver is shown: verdicts, deciding numbers, gain, warnings, changes, waivers."""

import re

import pytest
from tests.governance.conftest import BROKEN, MEASURED
from tests.lab.releases import log_release

from tuneline.artifacts.governance import MANIFEST_REF, Manifest, ManifestEvidence
from tuneline.catalogue import ITEMS
from tuneline.evidence import measure
from tuneline.governance.release.approvals import release_question
from tuneline.governance.release.manifest import write_manifest

TAB = "http://host/dags/d/runs/r/plugin/release-checklist"
GAIN = [
    measure("tuned_metric", 0.91, "share"),
    measure("gain_lower", 0.31, "share", ">", 0.0),
    measure("difference_to_released", 0.04, "share"),
    MEASURED,
]


@pytest.fixture
def asked(finished_lab):
    """Make a finished run, and return it with its question."""

    def make(work=lambda lab: None, **overrides):
        lab = finished_lab(name="model", profile="production", **overrides)
        lab.leave("holdout_performance", {}, GAIN)
        work(lab)
        lab.execute("lineage")
        return lab, release_question(lab.run, TAB)

    return make


def release_before(lab):
    entry = ManifestEvidence(
        phase="evaluation", severity="recommended", verdict="fail", summary="", because="", file="x"
    )
    manifest = Manifest(
        name="model", version="before", evidence={"determinism": entry}, files=[],
        base_model={"uri": "pypi://older"},
    )  # fmt: skip
    digest = write_manifest(lab.run.store, "models/model/before", manifest)
    log_release(lab.run.store, "model", "before", digest)


def test_it_shows_every_item_with_its_deciding_numbers_and_the_gain(asked):
    lab, text = asked()
    for item in ITEMS:
        assert re.search(rf"^\| `{item.id}` \| {item.severity} \| \w+ \|", text, re.MULTILINE)
    assert "limit\\_holds True (must be == True)" in text
    assert "gain\\_lower 0.31 share (must be \\> 0)" in text
    assert MANIFEST_REF.find(lab.run).sha256 in text
    assert f"]({TAB})" in text
    assert "## Open warnings" not in text
    assert "nothing was released under this name before" in text
    gain = text.split("## Gain")[1].split("##")[0]
    assert "tuned\\_metric 0.91 share" in gain
    assert "difference\\_to\\_released 0.04 share" in gain


def test_it_shows_open_warnings_and_broken_numbers(asked):
    _, text = asked(lambda lab: lab.leave("determinism", {}, [BROKEN]))
    warnings = text.split("## Open warnings")[1].split("## What")[0]
    assert "**fail** `determinism` (recommended)" in warnings
    assert "(must be == True) **broken**" in text


def test_it_shows_what_changed_since_the_release_before(asked):
    _, text = asked(release_before)
    changed = text.split("## What changed since the release before")[1].split("## The 25")[0]
    assert "compared with `before`" in changed
    assert "verdicts determinism: fail → pass" in changed
    assert "base uri: pypi://older →" in changed


def test_it_shows_what_is_waived_with_what_was_measured(asked):
    waivers = [
        {"item": "determinism", "measurement": "flips", "up_to": 5, "reason": "no stable order"},
        {"item": "holdout_performance", "limit": "evaluation.min_gain", "reason": "just in case"},
    ]
    loose = {"evaluation": {"min_identical_share": 0.5}}
    flips = measure("flips", 4, "rows", "==", 0)
    _, text = asked(lambda lab: lab.leave("determinism", {}, [flips]), waivers=waivers, **loose)
    shown = text.split("## Waivers")[1].split("##")[0]
    assert "`determinism`: flips up to 5.0. Now warn: " in shown
    assert "waived by alice: flips is 4, must be == 0 rows, accepted up to 5.0" in shown
    assert "`holdout_performance`: evaluation.min\\_gain. Now pass" in shown
    assert "asked for by a waiver of holdout\\_performance" in text
    assert "evaluation.min\\_identical\\_share is 0.5, the policy allows at least 1" in text


def test_what_a_run_says_is_no_markup(asked):
    text = asked(reason="[click](http://evil) | <img src=x>\n# Approved")[1]
    assert "[click]" not in text.replace("\\[click\\]", "")
    assert "<img" not in text.replace("\\<img", "")
    assert "\n# Approved" not in text
