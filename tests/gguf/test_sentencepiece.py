"""Scores reproduce merges, or the tokenizer is refused."""

import json

import pytest
from tests.lab.tiny_models import make_model

from tuneline.errors import UserError
from tuneline.gguf.tokenizer import read_tokenizer, refuse_foreign, scores, space_prefix

MERGES = [("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")]
VOCABULARY = {token: index for index, token in enumerate(["a", "b", "c", "ab", "bc", "abc"])}


def test_earlier_merges_have_higher_scores():
    assert scores(VOCABULARY, MERGES, ()) == {"ab": 0.0, "bc": -1.0, "abc": -2.0}


def test_a_pair_that_is_no_merge_although_its_token_exists_is_refused():
    with pytest.raises(UserError, match="does not merge 'ab' and 'c'"):
        scores(VOCABULARY, MERGES[:3], ())
    # Special tokens are split off before.
    assert scores(VOCABULARY, MERGES[:2], ("abc",)) == {"ab": 0.0, "bc": -1.0}


def test_merges_of_one_token_that_stand_apart_are_refused():
    mixed = [MERGES[0], MERGES[2], MERGES[1], MERGES[3]]
    with pytest.raises(UserError, match="merges for 'abc' stand between"):
        scores(VOCABULARY, mixed, ())


def test_runs_of_one_character_may_share_a_score():
    merges = [("▁▁", "▁▁"), ("▁▁", "▁"), ("▁", "▁▁▁"), ("▁", "▁▁"), ("▁▁▁", "▁"), ("▁", "▁")]
    vocabulary = {"▁" * n: n for n in range(1, 5)}
    found = scores(vocabulary, merges, ())
    assert found["▁▁▁▁"] == found["▁▁▁"] > found["▁▁"]


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document["model"].update(byte_fallback=False),
        lambda document: document["model"].update(ignore_merges=True),
        lambda document: document["model"]["vocab"].pop("<0xE4>"),
        lambda document: document.update(normalizer={"type": "NFKC"}),
        lambda document: document.update(pre_tokenizer={"type": "Whitespace"}),
    ],
)
def test_what_differs_from_sentencepiece_is_refused(change, tmp_path):
    make_model(tmp_path, tokenizer="gemma")
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    assert space_prefix(document) is False
    change(document)
    with pytest.raises(UserError, match="wrong token ids"):
        refuse_foreign(document, tmp_path)


def test_a_vocabulary_that_was_trained_otherwise_is_refused_with_its_file(tmp_path):
    make_model(tmp_path, tokenizer="phi-3")
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    merges = document["model"]["merges"]
    several = [merge for merge in merges if len("".join(merge)) > 2]
    merges.remove(several[0])
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"tokenizer\.json: the tokenizer does not merge"):
        read_tokenizer(tmp_path, 512)
