"""Several processes train as one does: the same losses, the same adapter."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.lab.commands import call
from tests.lab.training_runs import TrainingLab

from tuneline.artifacts.training import Packing
from tuneline.config import TrainingConfig, build_config
from tuneline.errors import RetryableError, TunelineError, UserError
from tuneline.training.loop.model import shards_base
from tuneline.training.loop.processes import (
    ALONE,
    Node,
    ProcessGroup,
    _reason,
    last_words,
    lost_processes_are_retryable,
    must_launch,
)

# Sums in another order, over a few steps of Adam.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_base):
    """The run of one process that the others are held against."""
    lab = TrainingLab(tmp_path_factory.mktemp("alone"), tiny_base, {"training": {"epochs": 1}})
    lab.train(micro_batch=2)
    return lab


def run_two(lab, plant="", **settings):
    packed = plant == "packed"
    kernels = {"cpu_kernels": False} if packed else {}
    run = lab(epochs=1, processes=2, packing="on" if packed else "off", **kernels, **settings)
    packing = Packing(packed=packed, attention="sdpa", padded_attention="sdpa")
    precision = {"precision": "bf16"} if settings.get("qlora") else {}
    run.prepare(micro_batch=2, packing=packing, **precision)
    arguments = ["-m", "tuneline.cli", "run", "train", "--run", run.run.uri]
    if plant:
        worker = Path(__file__).with_name("patched_worker.py")
        arguments = [str(worker), run.run.uri, str(run.root / "scratch")]
    done = call(
        sys.executable, *arguments, OMP_WAIT_POLICY="PASSIVE", PLANT=plant, NOTES=str(run.root)
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return run


@pytest.mark.parametrize(
    ("sharding", "packed"),
    [
        ("none", False),
        pytest.param("fsdp", True, marks=pytest.mark.long),
        pytest.param("none", True, marks=pytest.mark.long),
        pytest.param("fsdp", False, marks=pytest.mark.long),
    ],
)
def test_two_processes_train_like_one(lab, alone, sharding, packed):
    run = run_two(lab, "packed" if packed else "", sharding=sharding)
    noted = run.trained
    assert noted["packing"]["packed"] is packed
    assert (noted["world_size"], noted["nodes"], noted["backend"]) == (2, 1, "gloo")
    assert noted["sharding"] == sharding
    names = ("loss", "task_loss", "grad_norm", "tokens", "eval_loss")
    run.assert_trained_like(alone, names, TOLERANCE)
    measured = {m.name: m.value for m in run.run.entry("train").measurements}
    assert (measured["world_size"], measured["nodes"]) == (2, 1)


@pytest.mark.long
@pytest.mark.parametrize("qlora", [True, False])
def test_each_process_holds_the_whole_4bit_base_also_where_it_fills_a_gpu(lab, qlora):
    """Sharded 4-bit weights are corrupted without an error; a base in 16 bits is sharded there."""
    run = run_two(lab, "small_gpu", qlora=qlora, max_steps=2)
    held = [json.loads((run.root / f"base-{n}.json").read_text()) for n in (0, 1)]
    kinds = [{kind for kind, _ in each} for each in held]
    assert run.trained["sharding"] == ("none" if qlora else "fsdp")
    assert all(("DTensor" in kind) is not qlora for kind in kinds)
    assert all(("Params4bit" in kind) is qlora for kind in kinds)
    assert held[0] == held[1]


def test_a_mean_of_the_processes_means_is_seen(lab, alone):
    run = run_two(lab, "per_rank")
    pairs = zip(run.validation_losses, alone.validation_losses, strict=True)
    assert max(abs(ours - theirs) for ours, theirs in pairs) > 10 * TOLERANCE


def test_a_node_knows_its_place_or_says_what_is_missing():
    alone = build_config({"data": {"source": "x"}, "training": {"processes": 2}})
    assert Node.of(alone, {}) == Node(0, 1, 2, "127.0.0.1:0")
    two = build_config({"data": {"source": "x"}, "pods": {"nodes": 2, "gpus": 4}})
    told = {"JOB_COMPLETION_INDEX": "1", "TUNELINE_RENDEZVOUS": "job-0.service:29400"}
    assert Node.of(two, told) == Node(1, 2, 4, "job-0.service:29400")
    wrongs = ({"JOB_COMPLETION_INDEX": "2"}, {"TUNELINE_RENDEZVOUS": "job"})
    for wrong in ({}, *({**told, **wrong} for wrong in wrongs)):
        with pytest.raises(UserError, match=r"pods\.nodes is 2: start this command on each node"):
            Node.of(two, wrong)
    assert must_launch(two, {})
    assert not must_launch(two, {"RANK": "0"})
    assert not must_launch(build_config({"data": {"source": "x"}}), {})


def test_every_item_is_shared_out_once_and_all_compute_equally_often():
    for count in range(1, 8):
        shares = [ProcessGroup(rank, 3).share(range(count)) for rank in range(3)]
        assert len({len(share) for share in shares}) == 1
        counted = [item for share in shares for item, counts in share if counts]
        assert sorted(counted) == list(range(count))
    assert ALONE.share("ab") == [("a", True), ("b", True)]


def test_what_processes_ask_of_each_other(monkeypatch):
    assert ALONE.sum([1.5, 2.0]) == [1.5, 2.0]
    assert ALONE.follow([True, False]) == [True, False]
    assert ALONE.agree("anything", 3) == 3
    assert ALONE.largest(5) == 5
    monkeypatch.setattr(ProcessGroup, "gather", lambda self, value: [6, None])
    with pytest.raises(RetryableError, match="process 0: 6, process 1: None"):
        ProcessGroup(0, 2).agree("the checkpoint that they found", 6)
    # A lost connection is worth another try, other errors are not.
    with pytest.raises(RetryableError, match="training resumes"), lost_processes_are_retryable():
        raise RuntimeError("[pair.cc:537] Read error [127.0.0.1]:9: Connection reset by peer.")
    with pytest.raises(RuntimeError, match="shapes"), lost_processes_are_retryable():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


LOST, STOPPED = (75, "retryable: lost process 1"), (-signal.SIGTERM, "")


@pytest.mark.parametrize(
    ("first", "second", "kind", "said"),
    [
        (LOST, (-signal.SIGKILL, ""), RetryableError, "process 1 was killed by signal 9"),
        (LOST, (2, "user_error: no such base"), UserError, "no such base"),
        (STOPPED, (1, ""), TunelineError, "process 1 failed: it ended with exit code 1"),
        (LOST, STOPPED, RetryableError, "lost process 1"),
    ],
)
def test_the_process_that_failed_by_itself_is_named(tmp_path, first, second, kind, said):
    failures = {}
    for rank, (code, message) in enumerate((first, second)):
        if message:
            last_words(tmp_path, rank).write_text(message)
        failures[rank] = SimpleNamespace(exitcode=code, local_rank=rank)
    error = _reason(SimpleNamespace(failures=failures), tmp_path, tmp_path)
    assert type(error) is kind
    assert said in str(error)


def test_a_base_is_sharded_when_asked_or_when_it_would_fill_a_gpu(tiny_base):
    two = ProcessGroup(0, 2)

    def shards(group=two, gpu_bytes=None, **settings):
        return shards_base(TrainingConfig(**settings), tiny_base, group, gpu_bytes)

    assert shards(sharding="fsdp")
    assert not shards(ALONE, sharding="fsdp")
    assert not shards()
    assert not shards(gpu_bytes=80 << 30)
    assert shards(gpu_bytes=100_000)
    assert not shards(gpu_bytes=100_000, sharding="none")
    assert not shards(gpu_bytes=100_000, qlora=True)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs (NCCL)")
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_gpus_train_like_one(lab, sharding):
    one = lab(name="one", epochs=1)
    two = lab(name="two", epochs=1, processes=2, sharding=sharding)
    for run in (one, two):
        run.prepare(micro_batch=2, device="cuda", precision="bf16")
    one.resume()
    command = [sys.executable, "-m", "tuneline.cli", "run", "train", "--run", two.run.uri]
    subprocess.run(command, check=True)
    assert two.trained["backend"] == "nccl"
    assert two.validation_losses == pytest.approx(one.validation_losses, rel=0.02)
