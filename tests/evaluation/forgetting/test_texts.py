"""The perplexity on general texts, before and after."""

import pytest
from tests.lab.runs import broken

from tuneline.evaluation.forgetting.texts import compare_texts
from tuneline.harness.row_losses import RowLosses

TARGETS = (80, 100, 120, 90)


def losses(per_token, noise=0.0):
    sums = (n * (per_token + (noise if at % 2 else -noise)) for at, n in enumerate(TARGETS))
    return RowLosses(tuple(sums), TARGETS, (1.0,) * len(TARGETS))


def test_a_model_that_finds_texts_as_likely_passes():
    findings = compare_texts((losses(3.0), losses(3.05)), None)
    assert broken(findings.measurements) == set()
    assert values_of(findings)["perplexity_ratio"] == pytest.approx(1.0513, abs=1e-3)
    assert "1.051 times that of the base" in findings.sentence


def test_a_model_that_forgot_prose_fails():
    findings = compare_texts((losses(3.0), losses(3.8, noise=0.05)), None)
    assert broken(findings.measurements) == {"perplexity_ratio_lower"}
    assert broken(compare_texts((losses(3.0), losses(3.8)), 3.0).measurements) == set()


def test_what_only_chance_puts_beyond_the_limit_passes():
    assert broken(compare_texts((losses(3.0), losses(3.45, noise=0.6)), None).measurements) == set()


def test_an_engine_without_probabilities_says_so():
    findings = compare_texts(None, None)
    assert "does not tell the probabilities" in findings.sentence
    assert findings.measurements[0].rule is None


def values_of(findings):
    return {m.name: m.value for m in findings.measurements}
