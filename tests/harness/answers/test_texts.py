import pytest

from tuneline.harness.answers.texts import chrf, rouge_l


# Computed with the package rouge-score 0.1.2, without its stemmer.
@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("police killed the gunman", "police kill the gunman", 0.75),
        ("the gunman police killed", "police killed the gunman", 0.5),
        (
            "Fog lifts after ten. Wear sturdy boots.",
            "Wear sturdy boots; fog lifts after nine.",
            3 / 7,
        ),
        ("a b c d e f", "a x b y c z", 0.5),
    ],
)
def test_rouge_l_is_that_of_the_package(answer, expected, score):
    assert rouge_l(answer, expected) == pytest.approx(score)


def test_rouge_l_reads_other_scripts():
    assert rouge_l("Привет, мир", "привет мир!") == 1.0
    # Five of seven and five characters.
    assert rouge_l("东京是首都", "东京是日本首都") == pytest.approx(10 / 12)
    assert rouge_l("", "text") == rouge_l("text", "?") == 0.0


def test_chrf_ranks_likeness():
    expected = "Fog lifts after ten."
    assert chrf(expected, expected) == 1.0
    assert 0.5 < chrf("Fog lifts after nine.", expected) < 1.0
    assert chrf("", expected) == 0.0
    assert chrf("0123", expected) == 0.0


def test_chrf_by_hand():
    # "ab" against "ac": one of two single characters is right, no pair of characters is. Precision
    # and recall are (1/2 + 0) / 2, and so is the F-score.
    assert chrf("ab", "ac") == pytest.approx(0.25)
