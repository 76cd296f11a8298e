"""Real models and data: each case of the table gets the decision that its licence's text gives."""

from pathlib import Path

import pytest
import yaml

from tuneline.config import build_config
from tuneline.licenses.rules import (
    Circumstances,
    Joined,
    Named,
    circumstances_of,
    find_rule,
    judge,
    normalise,
    parse,
    table,
)
from tuneline.models.base_model import to_spdx

CASES = yaml.safe_load((Path(__file__).parent / "license_cases.yaml").read_text())
_WORST = ("allowed", "person", "refused")


def config_of(case):
    governance = {
        "intended_use": case["use"],
        "monthly_users": case.get("users"),
        "domicile": case.get("domicile"),
        "outputs_train_models": case.get("outputs_train", False),
    }
    name = case.get("name", "support").lower()
    return build_config({"data": {"source": "x.jsonl"}, "name": name, "governance": governance})


def decide(case):
    """The decision on base, data and the model that wrote them, the worst of the three."""
    # The hub's card says `other` for licences that it does not list, and names them beside it.
    stated = case["license_name"] if case["license"] == "other" else case["license"]
    base = to_spdx(stated) if stated else None
    architecture = case.get("architecture", "LlamaForCausalLM")
    circumstances = circumstances_of(config_of(case), base, architecture)
    found = [
        judge(normalise(base), circumstances),
        judge(normalise(case["data"]), circumstances, "data"),
    ]
    if "wrote" in case:
        found.append(judge(normalise(case["wrote"]), circumstances, "generator"))
    return max(found, key=lambda judgement: _WORST.index(judgement.decision))


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['base']}-{c['use']}-{c['data']}")
def test_a_real_case(case):
    found = decide(case)
    assert found.decision == case["decision"], found.reason
    assert case.get("because", "") in found.reason


@pytest.mark.parametrize("use", ["research", "internal", "hosted", "distributed"])
@pytest.mark.parametrize("license_id", ["NOASSERTION", "House licence", "MIT AND House licence"])
def test_what_has_no_rule_never_passes(license_id, use):
    assert judge(license_id, Circumstances(use)).decision == "person"


@pytest.mark.parametrize(
    ("expression", "decision"),
    [
        ("MIT OR GPL-3.0-only", "allowed"),
        ("MIT AND GPL-3.0-only", "refused"),
        ("MIT OR GPL-3.0-only AND House", "allowed"),
        ("(MIT OR GPL-3.0-only) AND GPL-2.0-only", "refused"),
        ("(MIT OR Apache-2.0) AND (BSD-3-Clause OR House)", "allowed"),
        ("House OR GPL-3.0-only", "person"),
        ("House AND GPL-3.0-only", "refused"),
        ("GPL-2.0-only WITH Classpath-exception-2.0", "allowed"),
        ("GPL-2.0-or-later WITH House-exception", "refused"),
        ("MIT WITH Commons-Clause", "person"),
        ("Apache-2.0 WITH LLVM-exception", "allowed"),
        ("GPL-2.0+", "refused"),
        ("MIT AND", "person"),
        ("(MIT OR House", "person"),
    ],
)
def test_expressions(expression, decision):
    assert judge(normalise(expression), Circumstances("distributed")).decision == decision


def test_and_binds_before_or_and_with_before_both():
    assert parse("A OR B AND C WITH d") == Joined(
        "OR", (Named("A"), Joined("AND", (Named("B"), Named("C", "d"))))
    )
    assert parse("GNU Library or Lesser") == Named("GNU Library or Lesser")


def test_the_duties_of_the_chosen_licence_bind_alone():
    found = judge("GPL-3.0-only OR CC-BY-4.0", Circumstances("distributed"))
    assert set(found.rules) == {"CC-BY-4.0"}


@pytest.mark.parametrize("version", ["1.0", "2.0", "2.5", "3.0", "4.0"])
@pytest.mark.parametrize("family", ["BY", "BY-SA", "BY-NC", "BY-NC-SA", "BY-ND", "BY-NC-ND"])
def test_creative_commons_in_every_version(family, version):
    stated = f"CC-{family}-{version}"
    assert normalise(stated.lower().replace("-", " ", 1)) == stated
    commercial = judge(stated, Circumstances("hosted"), "data").decision
    assert (commercial == "refused") == ("NC" in family)


def test_every_rule_names_its_source_and_no_name_has_two_rules():
    seen = {}
    for rule in table().rules:
        assert rule.source.startswith("https://"), rule.ids
        assert rule.kind or rule.uses, rule.ids
        for identifier in rule.ids:
            assert seen.setdefault(identifier.lower(), rule) is rule
            assert find_rule(identifier) in (rule, None) or rule.pattern, identifier


@pytest.mark.parametrize(
    "license_id",
    """CDLA-Permissive-1.0 CDLA-Permissive-2.0 CDLA-Sharing-1.0 ODC-By-1.0 ODbL-1.0 PDDL-1.0
    deepseek tongyi-qianwen tongyi-qianwen-research qwen qwen-research falcon-llm-license
    falcon-2-11b falcon-180b bigscience-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    creativeml-openrail-m""".split(),
)
def test_rules_that_were_read_cite_a_section(license_id):
    rule = find_rule(license_id)
    assert rule.read.startswith("20")
    assert "section" in rule.reason


def test_a_name_in_every_spelling_of_the_hub_has_its_own_text():
    for tag in "bigscience-openrail-m creativeml-openrail-m openrail++ bigcode-openrail-m".split():
        assert judge(normalise(to_spdx(tag)), Circumstances("hosted")).decision == "allowed"
    assert judge(normalise(to_spdx("openrail")), Circumstances("hosted")).decision == "person"


@pytest.mark.parametrize(
    ("written", "spdx"),
    [
        ("Apache 2.0", "Apache-2.0"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("MIT License", "MIT"),
        ("BSD 3-Clause", "BSD-3-Clause"),
        ("mit", "MIT"),
        ("PSF", "PSF-2.0"),
        ("GNU Lesser General Public License v3 (LGPLv3)", "LGPL-3.0-only"),
        ("LicenseRef-llama3.1", "llama3.1"),
        ("cdla-permissive-1.0", "CDLA-Permissive-1.0"),
        ("", "NOASSERTION"),
        (None, "NOASSERTION"),
        ("UNKNOWN", "NOASSERTION"),
        ("My own licence", "My own licence"),
    ],
)
def test_names_are_normalised(written, spdx):
    assert normalise(written) == spdx
