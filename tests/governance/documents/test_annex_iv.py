"""The page for auditors: the regulation's points, the evidence's numbers, and what is missing."""

import re

import pytest
from pydantic import ValidationError
from tests.governance.conftest import BROKEN, MEASURED
from tests.governance.documents.conftest import HOLDOUT, NO_GAIN, facts, folder

from tuneline.catalogue import ITEMS
from tuneline.cli import main
from tuneline.config.governance import ANNEX_IV_POINTS, GovernanceConfig
from tuneline.errors import UserError
from tuneline.governance.documents.annex_iv import annex_iv, answers, points, read_texts


def page(lab):
    return (folder(lab) / "annex_iv.md").read_text()


def section(text, point):
    return text.partition(f"\n## {point}\n")[2].partition("\n## ")[0]


def test_the_points_are_those_of_the_annex():
    """Nine points, of which 1 and 2 have the letters (a) to (h)."""
    asked = [point.point for point in points() if not point.heading]
    assert asked == list(ANNEX_IV_POINTS)
    assert [point.point for point in points() if point.heading] == ["1", "2"]
    words = {point.point: point.text for point in points()}
    # Spot checks against the Official Journal, OJ L, 2024/1689, 12.7.2024.
    assert words["1(b)"].startswith("how the AI system interacts with, or can be used to interact")
    assert "including an assessment of the technical measures needed to facilitate" in words["2(e)"]
    assert "as well as potentially discriminatory impacts; test logs" in words["2(g)"]
    assert words["8"] == "A copy of the EU declaration of conformity referred to in Article 47;"
    assert words["9"].endswith("the post-market monitoring plan referred to in Article 72(3).")
    assert {text[-1] for text in words.values()} == {";", ":", "."}
    assert {item for point in points() for item in point.items} == {item.id for item in ITEMS}


def test_the_page_has_numbers_with_limits(documented):
    text = page(documented())
    testing = section(text, "2(g)")
    assert "`holdout_performance` (critical): **pass**" in testing
    assert "gain_lower 0.4169 share (limit > 0)" in testing
    assert "deduplication took out 14 rows: exact_duplicate 14." in section(text, "2(d)")
    assert "evidence/holdout_performance/evidence.json, SHA-256" in testing
    assert "**Missing:** the declaration of conformity." in section(text, "8")
    assert "| 8 | missing |" in text
    assert re.search(
        r"^\| lineage \| governance \| critical \| – \| 1\(a\), 2\(h\), 6 \|$", text, re.M
    )


def test_a_planted_failure_is_shown_with_its_number(documented):
    def change(lab):
        lab.leave("holdout_performance", {}, [*HOLDOUT, NO_GAIN, MEASURED])
        lab.leave("fallback", {}, [BROKEN, MEASURED])

    text = page(documented(change))
    assert "**fail**" in section(text, "2(g)")
    assert "gain_lower -0.0731 share (limit > 0): broken" in section(text, "4")
    assert "| fallback | governance | recommended | fail | 3 |" in text


def test_an_item_that_was_not_run_is_missing_evidence(finished_lab):
    lab = finished_lab(name="model", without="holdout_performance")
    lab.execute("lineage")
    text = page(lab)
    assert "**Not measured in this release:** holdout_performance." in text
    assert "**Missing evidence:** holdout_performance measured nothing." in section(text, "4")
    assert "| 4 | missing |" in text
    assert "| holdout_performance | evaluation | critical | not_run | 2(g), 3, 4 |" in text


def test_what_the_provider_declares_takes_the_place_of_the_gap(documented):
    texts = {"1(a)": "Sorts mails.\n\n- By Example Ltd.", "8": "See the folder CE."}
    text = page(documented(governance={"annex_iv": texts}))
    assert "> Sorts mails.\n> \n> - By Example Ltd." in section(text, "1(a)")
    assert "**Missing" not in section(text, "1(a)") + section(text, "8")
    assert "| 1(a) | declared by the provider |" in text


def test_only_declared_or_measured_points_are_answered(documented):
    lab = documented()
    states = {a.point.point: a.state for a in answers(facts(lab), {"2(e)": "A clerk reads all."})}
    assert states["2(e)"] == "declared by the provider"
    assert states["5"] == states["2(f)"] == "missing"
    assert states["2(g)"] == "in part"
    with pytest.raises(ValidationError, match=r"'2\(z\)' is not a point of Annex IV"):
        GovernanceConfig(annex_iv={"2(z)": "text"})


def test_the_command_writes_the_page_and_takes_texts(documented, tmp_path, capsys):
    lab = documented()
    address = ["audit", "model/test", "--store", lab.run.store.uri]
    assert main(address) == 0
    assert capsys.readouterr().out == annex_iv(facts(lab)) == page(lab)
    texts = tmp_path / "texts.yaml"
    texts.write_text("1(a): Sorts mails.\n9: We look once a week.\n")
    assert main([*address, "--texts", str(texts)]) == 0
    out = capsys.readouterr().out
    assert "> Sorts mails." in section(out, "1(a)")
    assert "> We look once a week." in section(out, "9")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "can't be read"),
        ("- a", "holds no texts by point"),
        ("1(a): 3", r"1\(a\) must be a string"),
        ("1(z): text", r"'1\(z\)' is not a point of Annex IV"),
        ("1(a): [", "can't be read"),
    ],
)
def test_texts_that_are_none_are_the_users_error(tmp_path, content, sentence):
    texts = tmp_path / "texts.yaml"
    if content is not None:
        texts.write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_texts(texts)
