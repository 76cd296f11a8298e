"""TensorRT-LLM: exact commands that its parser takes, and no engine where none can be built."""

import argparse
import json
import os
from pathlib import Path

import pytest

from tuneline.errors import TunelineError, UserError
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.base import BuildRequest
from tuneline.serving.engines.tensorrt_llm.engine import QUANTISATIONS, VERSION

ENGINE = get_engine("tensorrt_llm")
# The flags of the release's programs.
FLAGS = json.loads(Path(__file__).with_name("flags.json").read_text(encoding="utf-8"))
TYPES = {"int": int, "float": float, "str": str}


class Refused(Exception):
    pass


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Refused(f"{self.prog}: {message}")


def parse(command):
    """Parse a command line as the release would."""
    skip = 2 if command[0] == "python" else 1
    program = Path(command[skip - 1]).name
    parser = Parser(prog=program, allow_abbrev=False, add_help=False)
    for flag, kind in FLAGS[program]["values"].items():
        if isinstance(kind, list):
            parser.add_argument(flag, choices=kind)
        elif kind == "list":
            parser.add_argument(flag, nargs="+")
        else:
            parser.add_argument(flag, type=TYPES[kind])
    for flag in FLAGS[program]["switches"]:
        parser.add_argument(flag, action="store_true")
    if program == "trtllm-serve":
        parser.add_argument("model")
    return parser.parse_args(list(command[skip:]))


@pytest.fixture
def no_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def script(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("quantization", [None, *QUANTISATIONS])
@pytest.mark.parametrize("lora_rank", [None, 16])
def test_the_release_would_take_our_commands(quantization, lora_rank, tiny_dir, tmp_path):
    request = BuildRequest(
        tiny_dir,
        tmp_path,
        quantization=quantization,
        lora_rank=lora_rank,
        calibration_dir=tmp_path / "calibration",
    )
    convert, build = ENGINE.commands(request)
    parsed = parse(convert)
    assert parsed.model_dir == str(tiny_dir)
    assert parsed.output_dir == str(tmp_path / "checkpoint")
    if quantization is not None:
        assert parsed.qformat == quantization
    parsed = parse(build)
    assert parsed.checkpoint_dir == str(tmp_path / "checkpoint")
    assert (parsed.max_batch_size, parsed.max_input_len, parsed.max_seq_len) == (8, 1024, 2048)
    assert parsed.lora_plugin == ("auto" if lora_rank else None)


def test_the_awq_block_divides_the_hidden_size(tiny_dir, tmp_path):
    convert, _ = ENGINE.commands(BuildRequest(tiny_dir, tmp_path, quantization="int4_awq"))
    assert parse(convert).awq_block_size == 64


@pytest.mark.parametrize(
    "wrong",
    [
        ["trtllm-build", "--max-batch-size", "8"],
        ["trtllm-build", "--gemm_plugin", "fp4"],
        ["trtllm-build", "--max_batch_size", "many"],
        ["trtllm-build", "--max_batch", "8"],
        ["python", "/x/quantize.py", "--qformat", "awq"],
    ],
)
def test_the_parser_refuses_what_the_release_would(wrong):
    with pytest.raises(Refused):
        parse(wrong)


def test_the_release_would_take_the_serve_command_of_the_pytorch_backend(tiny_dir, tmp_path):
    engine = get_engine("tensorrt_llm_pytorch")
    parsed = parse(engine.serve_command(BuildRequest(tiny_dir, tmp_path)))
    assert (parsed.model, parsed.backend, parsed.host, parsed.port) == (
        str(tiny_dir),
        "pytorch",
        "127.0.0.1",
        8081,
    )
    assert (parsed.max_batch_size, parsed.max_seq_len) == (8, 2048)


def test_without_a_gpu_nothing_is_built_and_it_is_said(no_gpu, tiny_dir, tmp_path):
    report = ENGINE.build(BuildRequest(tiny_dir, tmp_path / "out"))
    assert not report.built
    assert report.reason == (
        "not built: needs a GPU pod with tensorrt-llm 1.2.1 (no GPU and no trtllm-build here)"
    )
    assert [command[0] for command in report.commands] == ["python", "trtllm-build"]
    assert report.identity == {}
    assert not (tmp_path / "out").exists()
    report = get_engine("tensorrt_llm_pytorch").build(BuildRequest(tiny_dir, tmp_path / "out"))
    assert not report.built
    assert "needs a GPU pod" in report.reason


def test_a_gpu_too_old_for_a_quantisation(no_gpu, tiny_dir, tmp_path):
    script(no_gpu, "nvidia-smi", "echo 'NVIDIA A100, 8.0, 81920 MiB, 570.1'")
    script(no_gpu, "trtllm-build", "exit 0")
    report = ENGINE.build(BuildRequest(tiny_dir, tmp_path / "out", quantization="fp8"))
    assert not report.built
    assert "fp8 needs compute capability 8.9, the GPU has 8.0" in report.reason


def test_the_identity_of_a_built_engine(no_gpu, tmp_path):
    script(no_gpu, "nvidia-smi", "echo 'NVIDIA L4, 8.9, 23034 MiB, 570.1'")
    engine = tmp_path / "engine"
    engine.mkdir()
    config = {
        "version": "1.2.1",
        "pretrained_config": {"dtype": "float16", "quantization": {"quant_algo": None}},
        "build_config": {"max_batch_size": 8, "max_input_len": 1024, "max_seq_len": 2048},
    }
    (engine / "config.json").write_text(json.dumps(config))
    (engine / "rank0.engine").write_bytes(b"plan")
    identity = ENGINE.identity(engine)
    assert identity["version"] == "tensorrt_llm 1.2.1"
    assert identity["limits"]["max_batch_size"] == 8
    assert identity["gpus"][0]["compute_cap"] == "8.9"
    assert set(identity["files"]) == {"config.json", "rank0.engine"}


def test_a_command_that_fails_is_one_sentence(no_gpu, tiny_dir, tmp_path, monkeypatch):
    script(no_gpu, "nvidia-smi", "echo 'NVIDIA L4, 8.9, 23034 MiB, 570.1'")
    script(no_gpu, "trtllm-build", "exit 0")
    script(no_gpu, "python", "echo first >&2; echo 'CUDA out of memory' >&2; exit 3")
    with pytest.raises(TunelineError, match="python ended with code 3: CUDA out of memory"):
        ENGINE.build(BuildRequest(tiny_dir, tmp_path / "out"))


def test_what_can_not_be_asked_for(tiny_dir, tmp_path):
    with pytest.raises(UserError, match="'gptq': use one of int4_awq"):
        ENGINE.commands(BuildRequest(tiny_dir, tmp_path, quantization="gptq"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"architectures": ["FalconForCausalLM"]}))
    with pytest.raises(UserError, match="no conversion is known for FalconForCausalLM"):
        ENGINE.commands(BuildRequest(other, tmp_path))


@pytest.mark.gpu
@pytest.mark.skipif(not os.environ.get("TUNELINE_TRTLLM"), reason="needs the TensorRT-LLM image")
def test_the_real_parser_takes_our_commands(tiny_dir, tmp_path):
    from tensorrt_llm.commands.build import parse_arguments

    _, build = ENGINE.commands(BuildRequest(tiny_dir, tmp_path))
    parse_arguments().parse_args(list(build[1:]))


def test_the_table_names_its_release():
    assert FLAGS["version"] == VERSION == "1.2.1"
    assert parse(["trtllm-build"]).max_batch_size is None
