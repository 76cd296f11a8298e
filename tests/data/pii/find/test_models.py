import json

import pytest
from tests.data.pii.find.tiny import save_tiny_model

from tuneline.data.pii.find.detector import Detector
from tuneline.data.pii.find.entities import Settings, map_labels
from tuneline.data.pii.find.models import fetch_entity_model, load_entity_model
from tuneline.data.pii.find.texts import Shared
from tuneline.errors import UserError

LABELS = ["O", "B-PER", "I-PER", "B-ORG", "I-LOC"]
# Ordinary words, which no other detector takes for names.
KNOWN = {"pebble": "B-PER", "thistle": "I-PER", "acorn": "B-ORG"}
KNOWN |= {"meadow": "I-LOC", "北京": "I-LOC"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny"), KNOWN, LABELS)


def found(model, said):
    (words,) = model.words([said])
    return [(said[w.start : w.end], w.entity) for w in words]


def test_words_that_a_model_knows(tiny):
    model = load_entity_model(tiny, {"PERSON", "LOCATION"}, {})
    assert found(model, "we met (pebble thistle) and pebble in meadow!") == [
        ("pebble", "PERSON"),
        ("thistle", "PERSON"),
        ("pebble", "PERSON"),
        ("meadow", "LOCATION"),
    ]
    assert model.ignored == ("ORG",)
    assert model.words([]) == []
    assert model.words(["", "acorn"]) == [[], []]


def test_a_script_without_spaces_is_read_by_characters(tiny):
    model = load_entity_model(tiny, {"LOCATION"}, {})
    said = "字，" * 90 + "我住，北京，" + "字，" * 90
    assert found(model, said) == [("北", "LOCATION"), ("京", "LOCATION")]


def test_the_batch_makes_no_difference(tiny):
    model = load_entity_model(tiny, {"PERSON"}, {})
    texts = [" ".join(["pebble", *["word"] * count]) for count in (1, 90, 3, 45, 0)] * 20
    assert model.words(texts) == [model.words([one])[0] for one in texts]


def test_the_detector_takes_several_models(tiny, usual_model):
    said = "so pebble thistle and dana kowalczyk rang me about the invoice"
    named = {}
    for models in ((tiny,), (usual_model, tiny)):
        detector = Detector(Settings(models=models, allow=frozenset({"acorn"})))
        (found,) = detector.rows([[{"role": "user", "content": said}]], Shared())
        named[len(models)] = {said[h.start : h.end] for h in found[said]}
    assert named[1] == {"pebble thistle"}
    assert named[2] >= {"pebble thistle", "dana kowalczyk"}
    assert "ORG" in detector.ignored_labels


def test_labels_that_name_nothing_are_refused(tmp_path):
    plain = save_tiny_model(tmp_path, {"pebble": "LABEL_1"}, ["LABEL_0", "LABEL_1"])
    with pytest.raises(UserError, match=r"\(LABEL_0, LABEL_1\) name no kind of personal data"):
        load_entity_model(plain, {"PERSON"}, {})
    model = load_entity_model(plain, {"PERSON"}, {"LABEL_1": "PERSON"})
    assert found(model, "the pebble") == [("pebble", "PERSON")]
    with pytest.raises(UserError, match="pii_ner_labels: no entity is called HUMAN"):
        load_entity_model(plain, {"PERSON"}, {"LABEL_1": "HUMAN"})


@pytest.mark.parametrize(
    ("label", "entity"),
    [
        ("B-FIRST_NAME", "PERSON"),
        ("I-GIVENNAME1", "PERSON"),
        ("per", "PERSON"),
        ("GPE", "LOCATION"),
        ("U-TELEPHONENUM", "PHONE_NUMBER"),
        ("private_phone", None),
    ],
)
def test_labels_in_any_spelling(label, entity):
    labels = map_labels(["B-EMAIL", label], {}, ["PERSON"], "model")
    assert labels.entity.get(label) == entity


def test_what_is_no_such_model_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match=r"data\.pii_ner .*: there is no directory"):
        fetch_entity_model(str(tmp_path / "none"))
    with pytest.raises(UserError, match="unknown scheme ftp://"):
        fetch_entity_model("ftp://host/model")
    with pytest.raises(UserError, match=r"lacks config\.json, tokenizer\.json, model\.safetensors"):
        fetch_entity_model(str(tmp_path))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    directory, _ = fetch_entity_model(str(tmp_path))
    with pytest.raises(UserError, match="can't be loaded as a token classifier"):
        load_entity_model(directory, {"PERSON"}, {})


def test_gliner_says_how_to_install_its_package(tmp_path):
    (tmp_path / "gliner_config.json").write_text(json.dumps({"model_name": "tiny"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    directory, _ = fetch_entity_model(str(tmp_path))
    with pytest.raises(UserError, match=r"install it with .*gliner"):
        load_entity_model(directory, {"PERSON"}, {})
