"""TensorRT-LLM: exact commands that its parser takes, and no engine where none can be built."""

import json
import os
import shutil

import pytest
from tests.lab.trtllm.parser import FLAGS, Refused, parse

from tuneline.errors import TunelineError, UserError
from tuneline.models.base_model import read_json
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.engine import BuildRequest
from tuneline.serving.engines.server import ServeRequest
from tuneline.serving.engines.tensorrt_llm import build as commands
from tuneline.serving.engines.tensorrt_llm.build import (
    QUANTISATIONS,
    build_commands,
    copy_portable,
    portable_config,
    portable_tokenizer_config,
)
from tuneline.serving.engines.tensorrt_llm.engine import VERSION, TrtllmServer, serve_arguments

ENGINE = get_engine("tensorrt_llm")
TEXTS = ("one row", "another row")


def script(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("quantization", [None, *QUANTISATIONS])
@pytest.mark.parametrize("lora_rank", [None, 16])
def test_the_release_would_take_our_commands(quantization, lora_rank, tiny_dir, tmp_path):
    request = BuildRequest(
        tiny_dir,
        tmp_path / "out",
        quantization=quantization,
        lora_rank=lora_rank,
        calibration=TEXTS,
        context_logits=lora_rank is None,
    )
    convert, build = build_commands(request)
    parsed = parse(convert)
    assert parsed.model_dir == str(tmp_path / "out-work/model")
    assert parsed.output_dir == str(tmp_path / "out-work/checkpoint")
    if quantization is not None:
        assert parsed.qformat == quantization
        assert (parsed.calib_dataset, parsed.calib_size) == (
            str(tmp_path / "out-work/calibration"),
            2,
        )
    parsed = parse(build)
    assert parsed.checkpoint_dir == str(tmp_path / "out-work/checkpoint")
    assert parsed.output_dir == str(tmp_path / "out/engine")
    assert (parsed.max_batch_size, parsed.max_input_len, parsed.max_seq_len) == (8, 1024, 2048)
    assert parsed.lora_plugin == ("auto" if lora_rank else None)
    assert parsed.gather_context_logits is (lora_rank is None)


def test_the_awq_block_divides_the_hidden_size(tiny_dir, tmp_path):
    request = BuildRequest(tiny_dir, tmp_path, quantization="int4_awq", calibration=TEXTS)
    assert parse(build_commands(request)[0]).awq_block_size == 64


@pytest.mark.parametrize(
    "wrong",
    [
        ["trtllm-build", "--max-batch-size", "8"],
        ["trtllm-build", "--gemm_plugin", "fp4"],
        ["trtllm-build", "--max_batch_size", "many"],
        ["trtllm-build", "--max_batch", "8"],
        ["python", "/x/quantize.py", "--qformat", "awq"],
        ["trtllm-serve", "/engine", "--served_model_name", "model"],
    ],
)
def test_the_parser_refuses_what_the_release_would(wrong):
    with pytest.raises(Refused):
        parse(wrong)


def test_the_release_would_take_our_serve_commands(tiny_dir, built):
    request = ServeRequest(tiny_dir, "model", 8, 2048, port=8081)
    parsed = parse(["trtllm-serve", *serve_arguments(request, "pytorch")])
    assert (parsed.model, parsed.backend, parsed.host, parsed.port) == (
        str(tiny_dir),
        "pytorch",
        "127.0.0.1",
        8081,
    )
    assert (parsed.max_batch_size, parsed.max_seq_len) == (8, 2048)
    request = ServeRequest(built, "model", 1, 128, port=8081)
    parsed = parse(["trtllm-serve", *serve_arguments(request, "tensorrt")])
    assert (parsed.model, parsed.tokenizer) == (str(built / "engine"), str(built / "tokenizer"))
    # trtllm-serve asks for 2048 requests unless it is told otherwise, which the engine refuses.
    assert (parsed.max_batch_size, parsed.max_seq_len, parsed.max_num_tokens) == (1, 512, 8192)
    assert parsed.backend == "tensorrt"


def test_without_a_gpu_nothing_is_built_and_it_is_said(no_gpu, tiny_dir, tmp_path):
    report = ENGINE.build(BuildRequest(tiny_dir, tmp_path / "out"))
    assert not report.built
    assert report.reason == (
        "not built: it needs a GPU pod with tensorrt-llm "
        "(no GPU and no trtllm-build and no trtllm-serve here)"
    )
    assert [command[0] for command in report.commands] == ["python", "trtllm-build"]
    assert report.identity == {}
    assert not (tmp_path / "out").exists()
    for name in ("tensorrt_llm", "tensorrt_llm_pytorch"):
        engine = get_engine(name)
        assert "it needs a GPU pod" in engine.missing()
        assert not engine.on_gpu()
        assert engine.version() == "tensorrt_llm not installed here"
    with pytest.raises(UserError, match="needs a GPU pod"):
        ENGINE.make_variant("f16", tiny_dir, tmp_path / "v", texts=(), log=print)


def test_a_gpu_too_old_for_a_quantisation(no_gpu, tiny_dir, tmp_path):
    script(no_gpu, "nvidia-smi", "echo 'NVIDIA A100, 8.0, 81920 MiB, 570.1'")
    for name in ("trtllm-build", "trtllm-serve"):
        script(no_gpu, name, "exit 0")
    request = BuildRequest(tiny_dir, tmp_path / "out", quantization="fp8", calibration=TEXTS)
    report = ENGINE.build(request)
    assert not report.built
    assert "fp8 needs compute capability 8.9, the GPU has 8.0" in report.reason
    report = ENGINE.build(BuildRequest(tiny_dir, tmp_path / "out", tensor_parallel=2))
    assert report.reason == "not built: it needs 2 GPUs, this pod has 1"


def test_a_command_that_fails_is_one_sentence(no_gpu, tiny_dir, tmp_path):
    script(no_gpu, "nvidia-smi", "echo 'NVIDIA L4, 8.9, 23034 MiB, 570.1'")
    for name in ("trtllm-build", "trtllm-serve"):
        script(no_gpu, name, "exit 0")
    script(no_gpu, "python", "echo first >&2; echo 'CUDA out of memory' >&2; exit 3")
    said = r"convert_checkpoint\.py failed \(exit code 3\): CUDA out of memory"
    with pytest.raises(TunelineError, match=said):
        ENGINE.build(BuildRequest(tiny_dir, tmp_path / "out"))
    assert not (tmp_path / "out-work").exists()


def test_what_can_not_be_asked_for(tiny_dir, tmp_path):
    with pytest.raises(UserError, match="'gptq': use one of int4_awq"):
        build_commands(BuildRequest(tiny_dir, tmp_path, quantization="gptq"))
    with pytest.raises(UserError, match="fp8 calibrates on texts; give some training rows"):
        build_commands(BuildRequest(tiny_dir, tmp_path, quantization="fp8"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"architectures": ["FalconForCausalLM"]}))
    with pytest.raises(UserError, match="no conversion is known for FalconForCausalLM"):
        build_commands(BuildRequest(other, tmp_path))


@pytest.mark.gpu
@pytest.mark.skipif(not os.environ.get("TUNELINE_TRTLLM"), reason="needs the TensorRT-LLM image")
def test_the_real_parser_takes_our_commands(tiny_dir, tmp_path):
    from tensorrt_llm.commands.build import parse_arguments

    _, build = build_commands(BuildRequest(tiny_dir, tmp_path))
    parse_arguments().parse_args(list(build[1:]))


def test_the_table_names_its_release():
    assert FLAGS["version"] == VERSION == "1.2.1"
    assert parse(["trtllm-build"]).max_batch_size is None


def test_the_rotary_base_stands_where_transformers_4_looks(tiny_dir, tmp_path):
    config = read_json(tiny_dir / "config.json")
    assert config["rope_parameters"]["rope_theta"] == 5000.0
    assert "rope_theta" not in config
    copy_portable(tiny_dir, tmp_path / "copy", weights=True)
    copied = read_json(tmp_path / "copy" / "config.json")
    assert copied["rope_theta"] == 5000.0
    assert copied["torch_dtype"] == copied["dtype"]
    assert "rope_scaling" not in copied
    assert (tmp_path / "copy" / "model.safetensors").is_symlink()
    tokenizer = read_json(tmp_path / "copy" / "tokenizer_config.json")
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_scaled_rotary_embeddings_keep_their_scaling():
    rope = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 500000.0}
    found = portable_config({"rope_parameters": rope})
    assert found["rope_theta"] == 500000.0
    assert found["rope_scaling"] == {"rope_type": "llama3", "factor": 8.0}
    layers = {"full_attention": rope, "sliding_attention": rope}
    with pytest.raises(UserError, match="layers have different rotary embeddings"):
        portable_config({"rope_parameters": layers})


def test_special_tokens_in_a_list():
    found = portable_tokenizer_config({"extra_special_tokens": ["<a>"], "backend": "tokenizers"})
    assert found["additional_special_tokens"] == ["<a>"]
    assert "backend" not in found


def test_a_checkpoint_as_it_was_exported_would_give_another_model(
    image, tiny_dir, tmp_path, monkeypatch, built
):
    """The planted fault: transformers 4 takes a rotary base of 10000 and says nothing."""

    def as_it_is(source, target, *, weights):
        shutil.copytree(source, target)

    def answer(folder):
        server = TrtllmServer(ServeRequest(folder, "m", 2, 512), "tensorrt")
        prompt = [{"role": "user", "content": "the quick brown fox jumps over the dog"}]
        with server, server.client() as client:
            return client.chat(prompt, max_tokens=24, logprobs=True)

    monkeypatch.setattr(commands, "copy_portable", as_it_is)
    request = BuildRequest(tiny_dir, tmp_path / "wrong", max_batch_size=2, max_total_tokens=2048)
    assert get_engine("tensorrt_llm").build(request).built
    assert answer(tmp_path / "wrong").logprobs != answer(built).logprobs
