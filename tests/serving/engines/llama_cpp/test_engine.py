"""The llama.cpp engine: what it can serve."""

import json
import shutil

from tests.lab.tiny_models import make_tokenizer

from tuneline.serving.engines import get_engine
from tuneline.serving.engines.engine import read_facts

ENGINE = get_engine("llama_cpp")


def test_check(tiny_dir, tmp_path):
    found = ENGINE.check(read_facts(tiny_dir))
    assert found.compatible
    assert found.live
    assert "pre-tokenizer smollm" in found.reason
    other = shutil.copytree(tiny_dir, tmp_path / "other")
    make_tokenizer("unknown", other)
    found = ENGINE.check(read_facts(other))
    assert not found.compatible
    assert "wrong token ids" in found.reason
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "architectures": ["XForCausalLM"]}))
    assert "XForCausalLM" in ENGINE.check(read_facts(other)).reason
