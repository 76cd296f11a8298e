"""W4A16 by llm-compressor: the file is smaller, vLLM serves it, and its distance is measured."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.lab.tiny_task import conversation
from tests.vllm.reference import prompts, request, served, share_equal

from tuneline.errors import TunelineError, UserError
from tuneline.models import load_tokenizer
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.divergence import rows_of
from tuneline.serving.engines.vllm import quantize
from tuneline.serving.engines.vllm.engine import VllmServer

ENGINE = get_engine("vllm")


@pytest.fixture(scope="module")
def texts(tiny):
    tokenizer = load_tokenizer(tiny.merged)
    return [
        tokenizer.apply_chat_template(conversation(number)[0], tokenize=False)
        for number in range(64)
    ]


@pytest.fixture(scope="module")
def quantised(tiny, texts, tmp_path_factory):
    target = tmp_path_factory.mktemp("w4a16") / "w4a16"
    return ENGINE.make_variant("w4a16", tiny.merged, target, texts=texts, log=lambda _: None)


def test_the_unquantised_variant_is_the_checkpoint_itself(tiny, tmp_path):
    made = ENGINE.make_variant("f16", tiny.merged, tmp_path / "f16", texts=[], log=lambda _: None)
    assert made == tiny.merged


def test_weights_have_four_bits(tiny, quantised):
    config = json.loads((quantised / "config.json").read_text())["quantization_config"]
    (group,) = config["config_groups"].values()
    assert config["quant_method"] == "compressed-tensors"
    assert group["weights"]["num_bits"] == 4
    assert group["weights"]["group_size"] == 64
    assert group["input_activations"] is None
    # The head, which is the embedding as well, keeps 16 bits.
    assert config["ignore"] == ["lm_head"]
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (quantised, tiny.merged)]
    assert sizes[0] < sizes[1]


@contextmanager
def four_bit_kernels():
    """Skip the test where the machine does not run the kernels for four-bit weights."""
    try:
        yield
    except TunelineError as error:
        # Where the CPU names AMX, these kernels use it, and not every hypervisor runs it.
        amx = "amx_tile" in Path("/proc/cpuinfo").read_text()
        lacking = "ended by SIGILL" in str(error) or "lacks that kernel" in str(error)
        if lacking or (amx and "ended without a word" in str(error)):
            pytest.skip(str(error))
        raise


def test_vllm_serves_it(tiny, quantised):
    asked = prompts(60)
    with four_bit_kernels(), VllmServer(request(quantised, parallel=4)) as server:
        answers = served(server, asked)
    with VllmServer(request(tiny.merged, parallel=4)) as server:
        assert share_equal(answers, served(server, asked)) >= 0.8


def test_its_distance_is_small_and_not_none(tiny, quantised, texts):
    tokenizer = load_tokenizer(tiny.merged)
    sequences = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts[:6]]
    rows = rows_of(sequences, [len(ids) - 12 for ids in sequences])
    variants = {"w4a16": quantised}
    with four_bit_kernels():
        found = ENGINE.distances(tiny.merged, variants, rows, request(tiny.merged))["w4a16"]
    assert 0 < found.mean_kl < 0.5


def test_what_can_not_be_quantised_is_refused(tiny, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no training rows"):
        quantize.quantise(tiny.merged, tmp_path / "out", [])
    monkeypatch.setattr(quantize, "packages", lambda: tmp_path)
    with pytest.raises(UserError, match="llm-compressor is not installed"):
        quantize.quantise(tiny.merged, tmp_path / "out", ["text"])
