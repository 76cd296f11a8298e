"""What is built states what it is tied to, and is refused where that does not hold."""

import json
import shutil

import pytest
from tests.lab.trtllm import H100, L4

from tuneline.errors import UserError
from tuneline.models.base_model import load_tokenizer
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.engine import BuildRequest
from tuneline.serving.engines.server import ServeRequest
from tuneline.serving.engines.tensorrt_llm.identity import IDENTITY_FILE, read_sizes
from tuneline.store import sha256_file

ENGINE = get_engine("tensorrt_llm")
TEXTS = [f"row {number}" for number in range(8)]


def request_for(folder, parallel=2, context=512, **fields):
    return ServeRequest(folder, "model", parallel, context, **fields)


@pytest.fixture
def copy(built, tmp_path):
    return shutil.copytree(built, tmp_path / "copy")


def test_the_identity_names_everything_that_an_engine_is_tied_to(built):
    identity = json.loads((built / IDENTITY_FILE).read_text())
    assert identity["version"] == "tensorrt_llm 1.2.1"
    assert identity["tensorrt"] == "10.13.3.9"
    assert "cuda" in identity
    assert identity["driver"] == "570.133.20"
    assert (identity["gpus"][0]["name"], identity["gpus"][0]["compute_cap"]) == L4
    assert identity["mapping"]["tp_size"] == 1
    assert (identity["dtype"], identity["quantization"]["quant_algo"]) == ("float16", None)
    assert identity["limits"] == {
        "max_batch_size": 2,
        "max_input_tokens": 511,
        "max_total_tokens": 512,
        "max_num_tokens": 8192,
        "max_lora_rank": 0,
        "world_size": 1,
    }
    files = identity["files"]
    assert {"engine/config.json", "engine/rank0.engine", "tokenizer/tokenizer.json"} <= set(files)
    assert files["engine/rank0.engine"] == sha256_file(built / "engine/rank0.engine")
    # The model's config.json is among the tokenizer's files: trtllm-serve answers no chat without.
    assert not list(built.rglob("*.safetensors"))
    assert (built / "tokenizer/config.json").is_file()


def test_the_limits_are_those_that_were_built_and_not_those_asked_for(built, copy):
    path = copy / "engine/config.json"
    config = json.loads(path.read_text())
    config["build_config"]["max_seq_len"] = 256
    path.write_text(json.dumps(config))
    assert read_sizes(copy).max_total_tokens == 256
    assert read_sizes(built).max_total_tokens == 512


def test_an_engine_of_this_pod_is_served(built):
    assert ENGINE.command(request_for(built))[-2:] == ["--tp_size", "1"]


def other_tensorrt(copy):
    path = copy / IDENTITY_FILE
    path.write_text(path.read_text().replace("10.13.3.9", "10.9.0.34"))


def flipped(name):
    def plant(copy):
        raw = bytearray((copy / name).read_bytes())
        raw[-3] ^= 1
        (copy / name).write_bytes(raw)

    return plant


def other_files(copy):
    (copy / "engine/rank1.engine").write_bytes(b"another")
    (copy / "tokenizer/chat_template.jinja").unlink()


@pytest.mark.parametrize(
    ("plant", "sizes", "said"),
    [
        (other_tensorrt, {}, r"built by TensorRT 10\.9\.0\.34, this image has 10\.13"),
        (flipped("engine/rank0.engine"), {}, "json in engine/rank0.engine; fetch the"),
        (flipped("tokenizer/tokenizer.json"), {}, "json in tokenizer/tokenizer.json; fetch the"),
        (other_files, {}, r"in engine/rank1\.engine, tokenizer/chat_template\.jinja"),
        (lambda copy: (copy / IDENTITY_FILE).unlink(), {}, "says which GPU .* build it again"),
        (None, {"context": 1024}, "context_tokens is 1024, the engine was built for 512"),
        (None, {"parallel": 4}, "parallel is 4, the engine was built for 2 requests"),
    ],
)
def test_an_engine_that_is_not_what_it_says_or_too_small_is_refused(copy, plant, sizes, said):
    if plant:
        plant(copy)
    for start in (ENGINE.server, ENGINE.command):
        with pytest.raises(UserError, match=said):
            start(request_for(copy, **sizes))


def test_an_engine_is_refused_by_another_gpu_by_none_and_by_another_version(
    built, image, other_gpu, monkeypatch
):
    image.version("1.2.0")
    try:
        with pytest.raises(UserError, match=r"1\.2\.1, this image has 1\.2\.0: serve it in the"):
            ENGINE.server(request_for(built))
    finally:
        image.version("1.2.1")
    other_gpu(*H100)
    said = (
        r"built for SM 8\.9 \(NVIDIA L4\), this pod has 9\.0 \(NVIDIA H100 80GB HBM3\): "
        r"serve it on the former, or build it again here"
    )
    with pytest.raises(UserError, match=said):
        ENGINE.command(request_for(built))
    monkeypatch.setenv("TRTLLM_LAB_GPUS", "0")
    with pytest.raises(UserError, match=r"built for SM 8\.9 .*this pod has no GPU"):
        ENGINE.server(request_for(built))


def test_an_adapter_of_a_higher_rank_than_was_built_for(built, image, tiny_dir, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 32}))
    with pytest.raises(UserError, match="built without adapters, so it can't serve tuned"):
        ENGINE.server(request_for(built, adapters={"tuned": adapter}))
    ENGINE.build(BuildRequest(tiny_dir, tmp_path / "lora", lora_rank=16))
    with pytest.raises(UserError, match="rank 32, the engine was built for 16"):
        ENGINE.server(request_for(tmp_path / "lora", adapters={"tuned": adapter}))


def test_a_base_is_built_once_for_a_gpu(image, tiny_dir, tmp_path, monkeypatch, other_gpu):
    from tuneline.models.base_model import describe
    from tuneline.serving.engines.engine import hash_tree

    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path / "cache"))
    base = describe(str(tiny_dir), tiny_dir, hash_tree(tiny_dir))
    lines = []
    engine = ENGINE.sized(2, 256)
    first, second = engine.untuned(base, lines.append), engine.untuned(base, lines.append)
    assert first == second
    assert lines == [f"building an engine of the base model {tiny_dir} (once)"]
    assert read_sizes(first.path).max_total_tokens == 256
    assert engine.server(request_for(first.path, context=256))
    other_gpu(*H100)
    assert engine.untuned(base, lines.append).path != first.path
    assert len(lines) == 2


@pytest.mark.long
def test_variants_lose_what_their_quantisation_loses(image, tiny_dir, tmp_path):
    """The logits are the engines' own, by the LLM API in NVIDIA's Python."""
    engine = ENGINE.sized(2, 128)
    variants = {
        name: engine.make_variant(name, tiny_dir, tmp_path / name, texts=TEXTS, log=lambda _: None)
        for name in ("f16", "fp8", "int4_awq")
    }
    algorithms = {
        name: json.loads((path / IDENTITY_FILE).read_text())["quantization"]["quant_algo"]
        for name, path in variants.items()
    }
    assert algorithms == {"f16": None, "fp8": "FP8", "int4_awq": "W4A16_AWQ"}
    ids = load_tokenizer(tiny_dir)(["the quick brown fox jumps", "order 10293 was shipped"])
    sequences = ids["input_ids"]
    found = engine.distances(variants["f16"], variants, sequences, [2, 2], request_for(tmp_path))
    assert found["f16"].mean_kl == 0.0
    assert 0.0 < found["fp8"].mean_kl < found["int4_awq"].mean_kl
    assert found["fp8"].tokens == sum(map(len, sequences)) - 4
    with pytest.raises(UserError, match="a row has 200 tokens, the engines were built for 128"):
        engine.distances(variants["f16"], {}, [[5] * 200], [1], request_for(tmp_path))


def test_an_engine_that_was_not_built_to_be_measured(built):
    from tuneline.errors import TunelineError

    with pytest.raises(TunelineError, match="gives no context logits"):
        ENGINE.distances(built, {"f16": built}, [[5, 6, 7]], [1], request_for(built))
