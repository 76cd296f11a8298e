import pytest

from tuneline.data.pii.find.detector import CustomRecognisers, Detector
from tuneline.data.pii.find.entities import Settings
from tuneline.data.pii.find.texts import Shared
from tuneline.errors import UserError

BADGE = {
    "name": "badge",
    "supported_entity": "BADGE",
    "patterns": [{"name": "badge", "regex": r"\bB-\d{5}\b", "score": 0.6}],
}
WEAK = {
    "name": "member",
    "supported_entity": "MEMBER",
    "context": ["member"],
    "patterns": [{"name": "member", "regex": r"\b\d{6}\b", "score": 0.1}],
}
YAML = r"""
recognizers:
  - name: badge
    type: custom
    supported_languages: [{language: en}, {language: de}]
    supported_entity: BADGE
    patterns: [{name: badge, regex: "B-\\d{5}", score: 0.6}]
  - name: titles
    supported_entity: TITLE
    supported_language: en
    deny_list: [Sir Lancelot]
  - {name: off, enabled: false, supported_entity: OFF, patterns: []}
"""


def found(recognisers, text):
    return {(text[h.start : h.end], h.entity) for h in recognisers.find(text)}


def test_written_out_in_the_configuration():
    recognisers = CustomRecognisers([BADGE], ["en"], 0.4)
    assert recognisers.entities == ("BADGE",)
    assert found(recognisers, "I am B-12345, not C-12345.") == {("B-12345", "BADGE")}


def test_context_words_raise_the_score():
    recognisers = CustomRecognisers([WEAK], ["en"], 0.4)
    assert found(recognisers, "Member 123456 here") == {("123456", "MEMBER")}
    assert found(recognisers, "It took 123456 steps") == set()


def test_a_yaml_file(tmp_path):
    file = tmp_path / "recognisers.yaml"
    file.write_text(YAML)
    recognisers = CustomRecognisers([str(file)], ["en", "de"], 0.4)
    assert recognisers.entities == ("BADGE", "TITLE")
    assert found(recognisers, "Sir Lancelot, B-12345") == {
        ("Sir Lancelot", "TITLE"),
        ("B-12345", "BADGE"),
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        # A class by its import path is code of somebody's.
        ("team_pii:Badge", "'team_pii:Badge' can't be loaded"),
        ("nowhere.yaml", "'nowhere.yaml' can't be loaded"),
        ("other.yaml", "has no list `recognizers`"),
        ({"name": "badge"}, "'badge' can't be loaded"),
        ({**BADGE, "supported_language": "fi"}, "they serve fi, and data.languages declares en"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.yaml").write_text("patterns: []")
    with pytest.raises(UserError, match=message):
        CustomRecognisers([given], ["en"], 0.4)


def test_the_detector_runs_them_also_on_long_texts():
    detector = Detector(Settings(recognizers=(BADGE,)))
    assert detector.custom_entities == ("BADGE",)
    text = "word " * 1_500 + "I am B-12345, card 4111 1111 1111 1111."
    (found,) = detector.rows([[{"role": "user", "content": text}]], Shared())
    assert [hit.entity for hit in found[text]] == ["BADGE", "CREDIT_CARD"]
