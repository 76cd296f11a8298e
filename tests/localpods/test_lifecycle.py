"""Deletion, limits, images, GPUs and containers of pods."""

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from kubernetes.client import V1Pod
from tests.lab.pods import IMAGE, NAMESPACE, Api, Server, state_of
from tests.lab.waiting import wait_for


def test_deletion_sends_sigterm_and_waits(api: Api) -> None:
    api.create("graceful", 'trap "echo bye; sleep 0.3; exit 7" TERM; echo up; sleep 60 & wait')
    api.wait_log("graceful", "up")
    answer = api.core.read_namespaced_pod_log(
        "graceful", NAMESPACE, follow=True, _preload_content=False
    )
    api.core.delete_namespaced_pod("graceful", NAMESPACE)
    assert api.read("graceful").metadata.deletion_timestamp is not None
    assert answer.data.decode() == "up\nbye\n"
    wait_for(lambda: not api.exists("graceful"), what="the end of the pod")
    assert api.events("graceful")["Killing"] == "Stopping container base"


def test_grace_period_ends_with_sigkill_and_a_second_deletion_hastens_it(api: Api) -> None:
    api.create("stubborn", 'trap "" TERM; echo $BASHPID; while true; do sleep 0.1; done')
    api.wait_log("stubborn", "\n")
    process = psutil.Process(int(api.log("stubborn")))
    api.core.delete_namespaced_pod("stubborn", NAMESPACE)
    assert api.exists("stubborn")
    began = time.monotonic()
    api.core.delete_namespaced_pod("stubborn", NAMESPACE, grace_period_seconds=1)
    wait_for(lambda: not api.exists("stubborn"), what="the end of the pod")
    assert time.monotonic() - began > 0.9
    assert not process.is_running()


def test_what_a_container_leaves_behind_ends_with_it(api: Api) -> None:
    # Also a process in another session whose parent has ended.
    api.run("leaves", "setsid sleep 600 & setsid bash -c 'sleep 600 & echo $!' & sleep 0.3")
    pid = int(api.log("leaves"))
    wait_for(lambda: not psutil.pid_exists(pid), what="the end of the orphan")


def run_limited(api: Api, name: str, script: str) -> V1Pod:
    """Run a Python script in 100 MiB."""
    limits = {"limits": {"memory": "100Mi"}}
    return api.run(name, "", container_command=["python", "-c", script], container_resources=limits)


def test_memory_limit(api: Api) -> None:
    pod = run_limited(api, "hungry", "import time; a = bytearray(200 << 20); time.sleep(60)")
    ended = state_of(pod).terminated
    assert pod.status.phase == "Failed"
    assert (ended.exit_code, ended.reason) == (137, "OOMKilled")


def test_mapped_files_do_not_count_against_the_memory_limit(api: Api) -> None:
    # As model weights are: in memory, but dropped by the kernel when it needs room.
    script = (
        "import mmap, os, time\n"
        "with open('weights', 'wb') as f:\n"
        "    for _ in range(150): f.write(os.urandom(1 << 20))\n"
        "m = mmap.mmap(os.open('weights', os.O_RDONLY), 0, prot=mmap.PROT_READ)\n"
        "print(sum(m[i] for i in range(0, len(m), 4096)) > 0); time.sleep(1)"
    )
    assert run_limited(api, "mapped", script).status.phase == "Succeeded"


@pytest.mark.parametrize(
    ("name", "script", "code"),
    [
        ("late", "sleep 60", 143),
        # It leaves the grace period.
        ("late-but-tidy", 'trap "sleep 0.5; exit 7" TERM; sleep 60 & wait', 7),
    ],
)
def test_deadline(api: Api, name: str, script: str, code: int) -> None:
    pod = api.run(name, script, activeDeadlineSeconds=1)
    assert (pod.status.phase, pod.status.reason) == ("Failed", "DeadlineExceeded")
    assert state_of(pod).terminated.exit_code == code


def test_a_pod_whose_image_is_not_there_waits_and_says_why(api: Api) -> None:
    api.create("unmapped", container_image="nobody/knows:1")
    waiting = api.wait_waiting("unmapped")
    assert waiting.reason == "ErrImagePull"
    assert 'image "nobody/knows:1" is not in' in waiting.message
    assert IMAGE in waiting.message
    assert api.read("unmapped").status.phase == "Pending"
    assert "nobody/knows:1" in api.events("unmapped")["Failed"]
    api.core.delete_namespaced_pod("unmapped", NAMESPACE)
    assert not api.exists("unmapped")
    api.create("not-built", container_image="gone:1")
    assert "does not exist: build it" in api.wait_waiting("not-built").message
    pod = api.run("never", "true", container_image="unknown:1", activeDeadlineSeconds=1)
    assert pod.status.reason == "DeadlineExceeded"
    # Without a tag it is the latest one; the map has only `:local`.
    api.create("untagged", container_image=IMAGE.partition(":")[0])
    assert api.wait_waiting("untagged").reason == "ErrImagePull"


def test_gpu_that_is_not_there(served: Callable[..., Server]) -> None:
    api = Api(served("--gpus", "0"))
    api.create("gpu", container_resources={"limits": {"nvidia.com/gpu": "1"}})
    pod = wait_for(lambda: (p := api.read("gpu")).status.conditions and p, what="a condition")
    scheduled = pod.status.conditions[0]
    assert pod.status.phase == "Pending"
    assert (scheduled.type, scheduled.status) == ("PodScheduled", "False")
    assert scheduled.reason == "Unschedulable"
    assert "Insufficient nvidia.com/gpu" in scheduled.message
    assert api.events("gpu")["FailedScheduling"] == scheduled.message


def test_gpus_are_given_out(served: Callable[..., Server], tmp_path: Path) -> None:
    api = Api(served("--gpus", "2"))
    script = f'echo "gpus:$CUDA_VISIBLE_DEVICES"; {until(tmp_path / "go")}'
    one = {"limits": {"nvidia.com/gpu": 1}}
    for name in ("gpu-a", "gpu-b", "gpu-c"):
        api.create(name, script, container_resources=one)
    api.create("gpu-none", script)
    for name in ("gpu-a", "gpu-b", "gpu-none"):
        api.wait_phase(name, "Running")
    assert api.read("gpu-c").status.phase == "Pending"
    (tmp_path / "go").touch()
    for name in ("gpu-a", "gpu-b", "gpu-c", "gpu-none"):
        api.wait_phase(name, "Succeeded")
    logs = [api.log(name) for name in ("gpu-a", "gpu-b", "gpu-c", "gpu-none")]
    assert logs[:2] == ["gpus:0\n", "gpus:1\n"]
    assert logs[2] in logs[:2]
    assert logs[3] == "gpus:\n"


@pytest.mark.parametrize("codes", [(0, 0), (0, 3)])
def test_pod_of_several_containers(api: Api, codes: tuple[int, int]) -> None:
    containers = [
        {"name": f"c{i}", "image": IMAGE, "command": ["bash", "-c", f"sleep 0.{i}; exit {code}"]}
        for i, code in enumerate(codes)
    ]
    pod = api.run(f"several-{codes[1]}", "", containers=containers)
    assert pod.status.phase == ("Failed" if any(codes) else "Succeeded")


def until(path: Path) -> str:
    """Return a script that waits for a file."""
    return f"until [ -e {path} ]; do sleep 0.05; done"
