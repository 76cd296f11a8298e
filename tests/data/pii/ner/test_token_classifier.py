import json

import pytest
from tests.data.pii.ner.tiny import save_tiny_model
from tests.lab.data_runs import answer, chat, clean_rows, text
from tests.lab.runs import value

from tuneline.config import DataConfig
from tuneline.data.pii.ner.fetched import fetch_entity_model, load_entity_model
from tuneline.data.pii.ner.labels import map_labels
from tuneline.data.pii.scrubber import make_scrubber
from tuneline.errors import UserError

LABELS = ["O", "B-PER", "I-PER", "B-ORG", "I-LOC"]
# Ordinary words, which no other detector takes for names.
KNOWN = {"pebble": "B-PER", "thistle": "I-PER", "acorn": "B-ORG", "meadow": "I-LOC"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny"), KNOWN, LABELS)


def found(model, said):
    (hits,) = model.find([said])
    return [(said[h.start : h.end], h.entity) for h in hits]


def test_words_of_one_entity_are_one_hit(tiny):
    model = load_entity_model(tiny, {"PERSON", "LOCATION"}, {})
    assert found(model, "we met (pebble thistle) and pebble, pebble thistle in meadow!") == [
        ("pebble thistle", "PERSON"),
        ("pebble", "PERSON"),
        ("pebble thistle", "PERSON"),
        ("meadow", "LOCATION"),
    ]
    assert model.ignored == ("ORG",)
    assert model.find([]) == []
    assert model.find(["", "acorn"]) == [[], []]


def test_what_no_profile_demands_is_left(tiny):
    model = load_entity_model(tiny, {"PERSON"}, {})
    assert found(model, "pebble in meadow") == [("pebble", "PERSON")]
    assert model.ignored == ("LOC", "ORG")


def test_a_name_is_found_at_every_place_of_a_long_text(tiny):
    model = load_entity_model(tiny, {"PERSON"}, {})
    for place in range(0, 150, 7):
        words = ["word"] * 150
        words[place : place + 2] = ["pebble", "thistle"]
        assert found(model, " ".join(words)) == [("pebble thistle", "PERSON")], place


def test_the_batch_makes_no_difference(tiny):
    model = load_entity_model(tiny, {"PERSON"}, {})
    texts = [" ".join(["pebble", *["word"] * count]) for count in (1, 90, 3, 45, 0)] * 20
    assert model.find(texts) == [model.find([one])[0] for one in texts]


def test_it_finds_a_name_that_the_other_detectors_miss(tiny):
    row = chat("so pebble thistle rang me about the invoice", "I see.")
    named = {}
    for ner in (True, str(tiny)):
        scrubber = make_scrubber(DataConfig(source="rows.jsonl", pii_ner=ner), [])
        (result,) = scrubber.scrub(["key"], [row])
        named[ner] = "pebble thistle" not in result.messages[0]["content"]
    assert named == {True: False, str(tiny): True}


def test_the_allow_list_counts_for_it_too(tiny):
    config = DataConfig(source="rows.jsonl", pii_ner=str(tiny), pii_allow=["Pebble"])
    (result,) = make_scrubber(config, []).scrub(["key"], [chat("so pebble rang me", "I see.")])
    assert not result.hits


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
    labels = map_labels(["B-EMAIL", label], {}, ["PERSON", "LOCATION", "PHONE_NUMBER"], "model")
    assert labels.entity.get(label) == entity


def test_what_is_no_such_model_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match=r"data\.pii_ner: there is no directory"):
        fetch_entity_model(str(tmp_path / "none"))
    with pytest.raises(UserError, match="unknown scheme ftp://"):
        fetch_entity_model("ftp://host/model")
    with pytest.raises(UserError, match=r"lacks config\.json, tokenizer\.json, model\.safetensors"):
        fetch_entity_model(str(tmp_path))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    directory, _ = fetch_entity_model(str(tmp_path))
    with pytest.raises(UserError, match="can't be loaded as a token-classification model"):
        load_entity_model(directory, {"PERSON"}, {})


def test_gliner_says_how_to_install_its_package(tmp_path):
    pytest.importorskip("tuneline.data.pii.ner.gliner")
    (tmp_path / "gliner_config.json").write_text(json.dumps({"model_name": "tiny"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    directory, _ = fetch_entity_model(str(tmp_path))
    with pytest.raises(UserError, match=r"install it with .*gliner"):
        load_entity_model(directory, {"PERSON"}, {})


def test_the_evidence_names_the_model_and_what_it_ignores(data_lab, tiny):
    rows = clean_rows(20)
    rows[3] = {"messages": chat(f"{text(3)} so pebble thistle said", answer("login", "I see."))}
    settings = {"pii_ner": str(tiny), "pii_profile": ["gdpr"], "pii_max_leak_ner": 1.0}
    entry = data_lab(rows, **settings).upto("pii_scrubbing")
    _, digest = fetch_entity_model(str(tiny))
    assert value(entry, "model_en") == f"{tiny} sha256:{digest}"
    assert value(entry, "model_labels_ignored") == "LOC+ORG"
    assert value(entry, "found_PERSON") == 1


def test_spacy_is_the_usual_model():
    assert DataConfig(source="x", pii_ner="spacy").pii_ner is True
    assert DataConfig(source="x", pii_ner="hf://a/b@c", languages=["en", "da"]).name_models == {
        "en": "hf://a/b@c",
        "da": "hf://a/b@c",
    }
    with pytest.raises(ValueError, match="name a model"):
        DataConfig(source="x", pii_ner=" ")
