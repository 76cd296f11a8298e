"""What only TensorRT-LLM has: commands that its parser takes, engines with an identity."""

import json
import os
import shutil
from dataclasses import replace

import pytest
from tests.lab.releases import flip
from tests.lab.trtllm import H100, L4
from tests.lab.trtllm.parser import FLAGS, Refused, parse

from tuneline.errors import RetryableError, TunelineError, UserError
from tuneline.models.base_model import describe, load_tokenizer, read_json
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.divergence import rows_of
from tuneline.serving.engines.engine import BuildRequest, hash_tree
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
from tuneline.serving.engines.tensorrt_llm.identity import IDENTITY_FILE, read_sizes
from tuneline.store import sha256_file

ENGINE = get_engine("tensorrt_llm")
STORY = [{"role": "user", "content": "tell a story"}]
TEXTS = [f"row {number}" for number in range(8)]


def request_for(folder, parallel=2, context=512, **fields):
    return ServeRequest(folder, "model", parallel, context, **fields)


def start(folder, parallel=2, **fields):
    """Start a server past the comparison with the identity."""
    return TrtllmServer(request_for(folder, parallel, **fields), "tensorrt").start()


@pytest.mark.parametrize("quantization", [None, *QUANTISATIONS])
@pytest.mark.parametrize("logits", [True, False])
def test_the_release_would_take_our_commands(quantization, logits, tiny_dir, tmp_path):
    request = BuildRequest(
        tiny_dir,
        tmp_path / "out",
        quantization=quantization,
        calibration=TEXTS,
        context_logits=logits,
    )
    convert, build = map(parse, build_commands(request))
    work = tmp_path / "out-work"
    assert (convert.model_dir, convert.output_dir) == (f"{work}/model", f"{work}/checkpoint")
    if quantization is not None:
        assert convert.qformat == quantization
        assert (convert.calib_dataset, convert.calib_size) == (f"{work}/calibration", 8)
        # It divides the hidden size.
        assert convert.awq_block_size == (64 if quantization == "int4_awq" else None)
    assert (build.checkpoint_dir, build.output_dir) == (
        f"{work}/checkpoint",
        str(tmp_path / "out/engine"),
    )
    assert (build.max_batch_size, build.max_input_len, build.max_seq_len) == (8, 2047, 2048)
    assert build.gather_context_logits is logits


def test_the_parser_refuses_what_the_release_would():
    assert FLAGS["version"] == VERSION == "1.2.1"
    for wrong in ("trtllm-build --max_batch 8", "python /x/quantize.py --qformat awq"):
        with pytest.raises(Refused):
            parse(wrong.split())


@pytest.mark.long
def test_the_release_would_take_our_serve_commands(tiny_dir, built):
    request = request_for(tiny_dir, 8, 2048, port=8081)
    parsed = parse(["trtllm-serve", *serve_arguments(request, "pytorch")])
    assert (parsed.model, parsed.backend) == (str(tiny_dir), "pytorch")
    assert (parsed.host, parsed.port) == ("127.0.0.1", 8081)
    assert (parsed.max_batch_size, parsed.max_seq_len) == (8, 2048)
    parsed = parse(["trtllm-serve", *serve_arguments(request_for(built, 1, 128), "tensorrt")])
    assert (parsed.model, parsed.tokenizer) == (str(built / "engine"), str(built / "tokenizer"))
    # trtllm-serve asks for 2048 requests by default, which the engine refuses.
    assert (parsed.max_batch_size, parsed.max_seq_len, parsed.max_num_tokens) == (1, 512, 8192)
    assert parsed.backend == "tensorrt"
    assert "--stop-with-stdin" not in ENGINE.command(request_for(built))


@pytest.mark.gpu
@pytest.mark.skipif(not os.environ.get("TUNELINE_TRTLLM"), reason="needs the TensorRT-LLM image")
def test_the_real_parser_takes_our_commands(tiny_dir, tmp_path):
    from tensorrt_llm.commands.build import parse_arguments

    _, build = build_commands(BuildRequest(tiny_dir, tmp_path))
    parse_arguments().parse_args(list(build[1:]))


def test_without_a_gpu_nothing_is_built_and_it_is_said(no_gpu, tiny_dir, tmp_path):
    report = ENGINE.build(BuildRequest(tiny_dir, tmp_path / "out"))
    assert not report.built
    assert report.reason == (
        "not built: it needs a GPU pod with tensorrt-llm "
        "(no GPU and no trtllm-build and no trtllm-serve here)"
    )
    assert not (tmp_path / "out").exists()
    for name in ("tensorrt_llm", "tensorrt_llm_pytorch"):
        engine = get_engine(name)
        assert "it needs a GPU pod" in engine.missing()
        assert not engine.on_gpu()
        assert engine.version() == "tensorrt_llm not installed here"
    with pytest.raises(UserError, match="needs a GPU pod"):
        ENGINE.make_variant("f16", tiny_dir, tmp_path / "v", texts=(), log=print)


def test_a_build_that_this_machine_can_not_do(no_gpu, tiny_dir, tmp_path):
    for name, text in {
        "nvidia-smi": "echo 'NVIDIA A100, 8.0, 81920 MiB, 570.1'",
        "trtllm-build": "exit 0",
        "trtllm-serve": "exit 0",
        "python": "echo first >&2; echo 'CUDA out of memory' >&2; exit 3",
    }.items():
        (no_gpu / name).write_text(f"#!/bin/sh\n{text}\n")
        (no_gpu / name).chmod(0o755)
    request = BuildRequest(tiny_dir, tmp_path / "out", quantization="fp8", calibration=TEXTS)
    report = ENGINE.build(request)
    assert not report.built
    assert "fp8 needs compute capability 8.9, the GPU has 8.0" in report.reason
    said = r"convert_checkpoint\.py failed \(exit code 3\): CUDA out of memory"
    with pytest.raises(TunelineError, match=said):
        ENGINE.build(BuildRequest(tiny_dir, tmp_path / "out"))
    assert not (tmp_path / "out-work").exists()


@pytest.mark.parametrize(
    ("architecture", "quantization", "said"),
    [
        ("LlamaForCausalLM", "gptq", "'gptq': use one of int4_awq"),
        ("LlamaForCausalLM", "fp8", "fp8 calibrates on texts; give some training rows"),
        ("FalconForCausalLM", None, "no conversion is known for FalconForCausalLM"),
    ],
)
def test_what_can_not_be_asked_for(architecture, quantization, said, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    with pytest.raises(UserError, match=said):
        build_commands(BuildRequest(tmp_path, tmp_path, quantization=quantization))


def test_a_checkpoint_as_transformers_4_reads_it(tiny_dir, tmp_path):
    config = read_json(tiny_dir / "config.json")
    assert "rope_theta" not in config
    copy_portable(tiny_dir, tmp_path / "copy", weights=True)
    copied = read_json(tmp_path / "copy" / "config.json")
    assert copied["rope_theta"] == config["rope_parameters"]["rope_theta"] == 5000.0
    assert copied["torch_dtype"] == copied["dtype"]
    assert "rope_scaling" not in copied
    assert (tmp_path / "copy" / "model.safetensors").is_symlink()
    tokenizer = read_json(tmp_path / "copy" / "tokenizer_config.json")
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    found = portable_tokenizer_config({"extra_special_tokens": ["<a>"], "backend": "tokenizers"})
    assert found["additional_special_tokens"] == ["<a>"]
    assert "backend" not in found


def test_scaled_rotary_embeddings_keep_their_scaling():
    rope = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 500000.0}
    found = portable_config({"rope_parameters": rope})
    assert found["rope_theta"] == 500000.0
    assert found["rope_scaling"] == {"rope_type": "llama3", "factor": 8.0}
    layers = {"full_attention": rope, "sliding_attention": rope}
    with pytest.raises(UserError, match="layers have different rotary embeddings"):
        portable_config({"rope_parameters": layers})


@pytest.mark.long
def test_a_checkpoint_as_it_was_exported_would_give_another_model(
    build, tiny_dir, tmp_path, monkeypatch, built
):
    """The planted fault: transformers 4 takes a rotary base of 10000 and says nothing."""
    monkeypatch.setattr(commands, "copy_portable", lambda a, b, **_: shutil.copytree(a, b))
    wrong = build(tiny_dir, tmp_path / "wrong")
    rows = rows_of([list(range(3, 43))], [1])
    assert ENGINE.distances(built, {"wrong": wrong}, rows, request_for(built))["wrong"].mean_kl > 0


@pytest.fixture
def copy(built, tmp_path):
    return shutil.copytree(built, tmp_path / "copy")


def test_the_identity_names_everything_that_an_engine_is_tied_to(built):
    identity = json.loads((built / IDENTITY_FILE).read_text())
    assert (identity["tensorrt"], identity["driver"]) == ("10.13.3.9", "570.133.20")
    assert {"cuda", "dtype", "quantization", "mapping"} <= set(identity)
    assert (identity["gpus"][0]["name"], identity["gpus"][0]["compute_cap"]) == L4
    sizes = {"max_batch_size": 2, "max_input_tokens": 511, "max_total_tokens": 512}
    assert identity["limits"] == {**sizes, "max_num_tokens": 8192}
    files = identity["files"]
    assert {"engine/config.json", "engine/rank0.engine", "tokenizer/tokenizer.json"} <= set(files)
    assert files["engine/rank0.engine"] == sha256_file(built / "engine/rank0.engine")
    # The model's config.json is among the tokenizer's files: trtllm-serve answers no chat without.
    assert not list(built.rglob("*.safetensors"))
    assert (built / "tokenizer/config.json").is_file()


def change_config(copy, **changes):
    path = copy / "engine/config.json"
    config = json.loads(path.read_text())
    config["build_config"].update(changes)
    path.write_text(json.dumps(config))


def test_the_limits_are_those_that_were_built_and_not_those_asked_for(built, copy):
    change_config(copy, max_seq_len=256)
    assert read_sizes(copy).max_total_tokens == 256
    assert read_sizes(built).max_total_tokens == 512


def test_an_engine_that_was_not_built_to_be_measured(copy):
    change_config(copy, gather_context_logits=False)
    with pytest.raises(TunelineError, match="gives no context logits"):
        ENGINE.distances(copy, {"f16": copy}, rows_of([[5, 6, 7]], [1]), request_for(copy))
    rows = rows_of([[5] * 600], [1])
    with pytest.raises(UserError, match="a row has 600 tokens, the engine was built for 512"):
        ENGINE.distances(copy, {}, rows, request_for(copy))


def other_tensorrt(copy):
    path = copy / IDENTITY_FILE
    path.write_text(path.read_text().replace("10.13.3.9", "10.9.0.34"))


def flipped(name):
    return lambda copy: flip(copy / name)


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
        (None, {"parallel": 4}, "parallel is 4, the engine was built for 2"),
        (None, {"adapters": {"tuned": "a"}}, "can't serve the adapters tuned: it is started with"),
    ],
)
def test_an_engine_that_is_not_what_it_says_or_too_small_is_refused(copy, plant, sizes, said):
    assert ENGINE.command(request_for(copy))[-2:] == ["--tp_size", "1"]
    if plant:
        plant(copy)
    for begin in (ENGINE.server, ENGINE.command):
        with pytest.raises(UserError, match=said):
            begin(request_for(copy, **sizes))


def other_gpu(monkeypatch, name, sm):
    monkeypatch.setenv("TRTLLM_LAB_GPU", name)
    monkeypatch.setenv("TRTLLM_LAB_SM", sm)


def test_an_engine_is_refused_by_another_gpu_by_none_and_by_another_version(
    built, image, monkeypatch
):
    image.version("1.2.0")
    try:
        with pytest.raises(UserError, match=r"1\.2\.1, this image has 1\.2\.0: serve it in the"):
            ENGINE.server(request_for(built))
    finally:
        image.version("1.2.1")
    other_gpu(monkeypatch, *H100)
    said = (
        r"built for SM 8\.9 \(NVIDIA L4\), this pod has 9\.0 \(NVIDIA H100 80GB HBM3\): "
        r"serve it on the former, or build it again here"
    )
    with pytest.raises(UserError, match=said):
        ENGINE.command(request_for(built))
    # TensorRT itself refuses as well.
    with pytest.raises(UserError, match=r"expecting compute 8\.9 got compute 9\.0.*on this GPU"):
        start(built)
    monkeypatch.setenv("TRTLLM_LAB_GPUS", "0")
    with pytest.raises(UserError, match=r"built for SM 8\.9 .*this pod has no GPU"):
        ENGINE.server(request_for(built))


@pytest.mark.long
def test_a_base_is_built_once_for_a_gpu(image, tiny_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path / "cache"))
    base = describe(str(tiny_dir), tiny_dir, hash_tree(tiny_dir))
    lines = []
    engine = ENGINE.sized(2, 256)
    first, second = engine.untuned(base, lines.append), engine.untuned(base, lines.append)
    assert first == second
    assert lines == [f"building an engine of the base model {tiny_dir} (once)"]
    assert read_sizes(first.path).max_total_tokens == 256
    assert engine.server(request_for(first.path, context=256))
    other_gpu(monkeypatch, *H100)
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
    rows = rows_of(ids["input_ids"], [2, 2])
    found = engine.distances(variants["f16"], variants, rows, request_for(tmp_path))
    assert found["f16"].mean_kl == 0.0
    assert 0.0 < found["fp8"].mean_kl < found["int4_awq"].mean_kl


def test_starts_that_fail(built, monkeypatch):
    with pytest.raises(UserError, match=r"max_batch_size \[9\] is .*; build the engine for more"):
        start(built, 9)
    # An engine that answers nothing is never ready.
    monkeypatch.setenv("TRTLLM_LAB_MUTE", "1")
    with pytest.raises(RetryableError, match=r"not ready after 6 s: .*without a token"):
        start(built, start_seconds=6.0)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (
            "[TRT-LLM] [E] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
            "CUDA out of memory.*lower deployment.parallel",
        ),
        (
            "Traceback\nmpi4py.MPI.Exception: bad rank\nRuntimeError: Executor worker died\n",
            r"Executor worker died \(exit code 1\)$",
        ),
        ("one line\nthe last one\n", r"the last one \(exit code 1\)$"),
    ],
)
def test_errors_of_logs_that_only_a_gpu_can_give(log, said, built, monkeypatch):
    monkeypatch.setattr(TrtllmServer, "read_log", lambda _: log)
    with pytest.raises(TunelineError, match=said):
        raise TrtllmServer(request_for(built), "tensorrt").start_error(1, "it did not listen")


def test_the_pytorch_backend_serves_the_checkpoint(image, tiny_dir):
    engine = get_engine("tensorrt_llm_pytorch")
    assert engine.missing() is None
    assert engine.on_gpu()
    assert engine.version() == "tensorrt_llm 1.2.1"
    assert engine.make_variant("f16", tiny_dir, tiny_dir, texts=(), log=print) == tiny_dir
    with pytest.raises(UserError, match="no variant fp8"):
        engine.make_variant("fp8", tiny_dir, tiny_dir, texts=(), log=print)
    request = request_for(tiny_dir, context=256)
    with pytest.raises(UserError, match="started with merged models only"):
        engine.server(replace(request, adapters={"tuned": tiny_dir}))
    with engine.server(request) as running:
        before = running.counters()
        with running.client() as client:
            answer = client.chat(STORY, max_tokens=6, extra={"ignore_eos": True})
        assert running.counters().completion_tokens - before.completion_tokens == 6
        assert answer.usage.completion_tokens == 6
        tokenizer = load_tokenizer(tiny_dir)
        text = tokenizer.apply_chat_template(STORY, tokenize=False, add_generation_prompt=True)
        assert running.renders(STORY, text, running.tokenize([text])[0])
    rows = rows_of([[5, 6, 7, 8, 9], [9, 8, 7]], [2, 1])
    found = engine.distances(tiny_dir, {"f16": tiny_dir}, rows, request)["f16"]
    assert (found.tokens, found.mean_kl) == (5, 0.0)
    assert found.perplexity > 1
