"""What the manifest calls checked is found by `tuneline verify` when it is edited."""

import copy
import json

import pytest
from tests.governance.conftest import HOLDS, MEASURED
from tests.lab.signatures import key_pair

from tuneline.artifacts.governance import Manifest
from tuneline.evidence import measure
from tuneline.governance.release.verify import BASIS, examine

MANIFEST = "models/model/test/manifest.json"


def basis_of(path):
    """Whether a value of a manifest is checked or declared; the longest path in BASIS counts."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        for known, basis in BASIS.items():
            pattern = known.split(".")
            if len(pattern) == length and all(
                a in ("*", b) for a, b in zip(pattern, parts, strict=False)
            ):
                return basis
    return "declared"


def leaves(value, path=()):
    """Yield the places of all values of a document that hold no others."""
    if isinstance(value, dict | list) and value:
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        for key, below in inside:
            yield from leaves(below, (*path, key))
    else:
        yield path


def edited(document, place):
    """Return the document with another value in one place."""
    changed = copy.deepcopy(document)
    holder = changed
    for key in place[:-1]:
        holder = holder[key]
    old = holder[place[-1]]
    if isinstance(old, bool):
        new = not old
    elif isinstance(old, int | float):
        new = old + 1
    elif old in ("pass", "fail"):
        # The other way a gate or an audit may have made it worse.
        new = "pass"
    elif isinstance(old, str):
        new = f"{old}0"
    else:
        new = {"edited": "by hand"} if old is None or isinstance(old, dict) else ["edited"]
    holder[place[-1]] = new
    return changed


def named(place):
    return ".".join(str(key) for key in place if isinstance(key, str))


@pytest.fixture
def release(finished_lab, tmp_path):
    """A signed release after another one, whose every verdict could be better."""
    pytest.importorskip("model_signing", reason="requirements/signing.txt is not installed")
    private, public = key_pair(tmp_path, "ours")
    lab = finished_lab(name="model", governance={"signing_key": str(private)})
    for item in ("fallback", "cold_start"):
        lab.leave(item, {}, [measure("limit", 2, "s", "<=", 1), MEASURED])
    lab.leave("distribution_balancing", {"dataset.parquet": "rows"}, [HOLDS])
    assert lab.execute("lineage")
    return lab, public


def test_the_basis_is_in_the_manifest(release):
    lab, _ = release
    document = json.loads(lab.run.store.get_bytes(MANIFEST))
    assert document["basis"] == BASIS
    assert set(Manifest.model_fields) - {"schema_"} <= {path.partition(".")[0] for path in BASIS}
    assert basis_of("evidence.fallback.verdict") == "checked"
    assert basis_of("evidence.fallback.because") == "declared"
    assert basis_of("dataset.source") == "declared"
    assert basis_of("a_field_of_a_later_version") == "declared"


def test_every_checked_value_is_compared_with_bytes(release):
    lab, public = release
    store, uri = lab.run.store, lab.run.store.uri_of(MANIFEST)
    raw = store.get_bytes(MANIFEST)
    assert examine(uri, public).differences == []
    document = json.loads(raw)
    places = [place for place in leaves(document) if basis_of(named(place)) == "checked"]
    # Of many files and items a few stand for all: every edit is verified from the start.
    few = {"model.gguf", "config.json", "lora.json", "README.md", "bom.cdx.json"}
    few_items = {"fallback", "cold_start"}
    places = [
        place
        for place in places
        if not (place[0] == "files" and document["files"][place[1]]["name"] not in few)
        and not (place[0] == "evidence" and place[1] not in few_items)
    ]
    assert {place[0] for place in places} >= {
        "name", "version", "dataset", "dataset_file", "hyperparameters", "engine", "evidence",
        "previous_version", "parent", "signature", "files",
    }  # fmt: skip
    unseen = []
    for place in places:
        store.put_bytes(MANIFEST, json.dumps(edited(document, place)).encode())
        # Without the key: the signature covers the manifest, so that it would find any edit.
        key = public if place[0] == "signature" else None
        if not examine(uri, key).differences:
            unseen.append(place)
    assert unseen == []


def test_a_verdict_that_was_taken_out_or_is_anothers_is_named(release):
    store = release[0].run.store
    raw = store.get_bytes(MANIFEST)
    other = {"file": "evidence/determinism/evidence.json"}
    for edit, said in (
        (lambda stated: stated.pop("fallback"), "states no verdict of fallback"),
        (lambda stated: stated["fallback"].update(other), "item, phase of fallback are not what"),
    ):
        document = json.loads(raw)
        edit(document["evidence"])
        store.put_bytes(MANIFEST, json.dumps(document).encode())
        [difference] = examine(store.uri_of(MANIFEST)).differences
        assert said in difference
