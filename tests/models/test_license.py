"""Where a model's licence is read."""

import json

import pytest

from tuneline.models.base_model import read_license, to_spdx


@pytest.mark.parametrize(
    ("written", "identifier"),
    [
        ("apache-2.0", "Apache-2.0"),
        ("MIT", "MIT"),
        ("llama3.1", "LicenseRef-llama3.1"),
        ("My Own Licence", "LicenseRef-my-own-licence"),
        ("other", None),
        ("", None),
    ],
)
def test_names(written, identifier):
    assert to_spdx(written) == identifier


def test_the_order_of_sources(tmp_path):
    assert read_license(tmp_path, {})[0] is None
    (tmp_path / "LICENSE").write_text("\n  Apache License\n  Version 2.0, January 2004\n")
    assert read_license(tmp_path, {}) == ("Apache-2.0", "LICENSE: its text")
    assert read_license(tmp_path, {"license": "mit"}) == ("MIT", "config.json: license")
    card = "---\nlicense: other\nlicense_name: llama-x\n---\n# Model\n"
    (tmp_path / "README.md").write_text(card)
    assert read_license(tmp_path, {"license": "mit"}) == (
        "LicenseRef-llama-x",
        "README.md: license_name",
    )
    note = {"license": "CC-BY-4.0", "license_source": "the wheel"}
    (tmp_path / "tuneline_origin.json").write_text(json.dumps(note))
    assert read_license(tmp_path, {}) == ("CC-BY-4.0", "the wheel")


def test_of_several_licences_all_bind(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: [mit, cc-by-nc-4.0, other]\n---\n")
    assert read_license(tmp_path, {})[0] == "MIT AND CC-BY-NC-4.0 AND NOASSERTION"


@pytest.mark.parametrize(
    ("text", "identifier"),
    [
        ("under the Creative Commons Attribution 4.0\nInternational License.", "CC-BY-4.0"),
        ("Attribution 4.0 International\n\n======", "CC-BY-4.0"),
        ("Attribution-NonCommercial 4.0 International\n\n======", None),
        ("Qwen RESEARCH LICENSE AGREEMENT\n\nRelease Date", "LicenseRef-qwen-research"),
        ("Tongyi Qianwen LICENSE AGREEMENT\n\nRelease", "LicenseRef-tongyi-qianwen"),
        ("# Mistral AI Research License\n\nIf You want", "LicenseRef-MRL-0.1"),
        ("DEEPSEEK LICENSE AGREEMENT\n\nVersion 1.0", "LicenseRef-deepseek"),
        ("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT", "LicenseRef-llama3.2"),
        (
            "BigScience RAIL License v1.0\ndated May 19, 2022",
            "LicenseRef-bigscience-bloom-rail-1.0",
        ),
        ("BigScience Open RAIL-M License\ndated", "LicenseRef-bigscience-openrail-m"),
        ("BigCode Open RAIL-M v1 License Agreement", "LicenseRef-bigcode-openrail-m"),
        ("CreativeML Open RAIL-M\n\ndated", "LicenseRef-creativeml-openrail-m"),
        ("CreativeML Open RAIL++-M License", "LicenseRef-creativeml-openrail-plus-m"),
        ("TII Falcon License\n\nDecember 2024", "LicenseRef-falcon-llm-license"),
        ("TII Falcon LLM License Version 1.0\n\nMay 2023", "LicenseRef-falcon-llm-1.0"),
        ("Falcon 2 11B TII License Version 1.0", "LicenseRef-falcon-2-11b"),
        ("FALCON 180B TII LICENSE VERSION 1.0", "LicenseRef-falcon-180b"),
        ("A licence of our house", None),
    ],
)
def test_the_first_words_of_a_text_name_its_licence(tmp_path, text, identifier):
    (tmp_path / "LICENSE").write_text(text)
    assert read_license(tmp_path, {})[0] == identifier


@pytest.mark.parametrize(
    "card", ["no front matter", "---\n[broken: yaml\n---\n", "---\n- a\n---\n"]
)
def test_a_model_card_that_says_nothing(card, tmp_path):
    (tmp_path / "README.md").write_text(card)
    assert read_license(tmp_path, {})[0] is None
