"""The peak of a micro-batch follows from smaller ones, and the limit is what the machine leaves."""

import json
import subprocess
import sys

import pytest

from tuneline.errors import UserError
from tuneline.machine.checkout import project_root
from tuneline.machine.child_environment import child_environment
from tuneline.machine.memory import cgroup_free
from tuneline.machine.quantity import quantity
from tuneline.training.resources.out_of_memory import GIB
from tuneline.training.resources.probe import FREE_SHARE, Climb, Peak, memory_limit

# A model that takes 1,000 bytes, and 10 bytes for each token of rows of 8 tokens.
START = [Peak(2, 1020), Peak(4, 1040)]


def climb(limit, memory=lambda rows: 1000 + 80 * rows):
    """A climb over that model, and the micro-batches that it measures."""
    asked = []

    def measure(rows):
        asked.append(rows)
        return memory(rows)

    return Climb(limit, lambda rows: 8 * rows, measure, list(START)), asked


@pytest.mark.parametrize(
    ("sizes", "limit", "asked", "taken"),
    [
        ([1, 2, 4, 8], 10_000, [1, 2, 4, 8], 8),
        ([1, 2, 4, 8], 1400, [1, 2, 4], 4),
        # Of the sizes within twice the last one the largest that fits is next.
        ([1, 2, 3, 4, 6, 12], 10_000, [1, 2, 4, 6, 12], 12),
        ([1, 2, 3, 4, 6, 12], 1250, [1, 2, 3], 3),
        # One size alone is reached over powers of two.
        ([12], 10_000, [1, 2, 4, 8, 12], 12),
        # Where nothing fits the smallest is measured all the same: it is what the evidence shows.
        ([1, 2, 4], 1050, [1], 1),
        ([8], 1200, [1, 2, 8], 8),
    ],
)
def test_a_climb_measures_what_fits(sizes, limit, asked, taken):
    way, measured = climb(limit)
    found = way.up(sizes)
    assert measured == asked
    assert found.rows == taken
    assert found.predicted.total == pytest.approx(found.memory, abs=2) == 1000 + 80 * taken


def test_a_prediction_that_was_too_low_ends_the_climb():
    way, measured = climb(1700, lambda rows: 1000 + 80 * rows + (500 if rows >= 4 else 0))
    found = way.up([1, 2, 4, 8])
    assert measured == [1, 2, 4]
    assert (found.rows, found.memory, found.predicted.total) == (4, 1820, 1320)
    assert found.memory > way.limit
    # An allocator that had room left predicts no less than before.
    way, _ = climb(10_000, lambda rows: 1040)
    assert way.up([1, 2]).predicted.total == 1040


@pytest.mark.long
@pytest.mark.model
@pytest.mark.parametrize(
    "case",
    [
        {"rows": 8, "tokens": 234, "learned": 80},
        {"rows": 8, "tokens": 234, "learned": 40, "shared": 130},
        {"rows": 8, "tokens": 234, "learned": 80, "gradient_checkpointing": True},
        {"rows": 8, "tokens": 234, "learned": 80, "qlora": True},
        {"rows": 2, "tokens": 512, "learned": 200, "dropout": 0.05},
    ],
    ids=["plain", "shared prefix", "checkpointing", "4-bit", "dropout"],
)
def test_a_prediction_is_within_a_tenth_of_the_real_peak(case):
    done = subprocess.run(
        [sys.executable, "-m", "tests.lab.memory_case", json.dumps(case)],
        env=child_environment(project_root(), OMP_WAIT_POLICY="PASSIVE"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0.9 < float(done.stdout) < 1.1


def test_the_limit_is_configured_or_a_share_of_the_tightest_bound(tmp_path):
    import torch

    assert memory_limit(torch, 1.5, "8Gi") == (int(1.5 * GIB), "training.memory_limit_gib")
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("600000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 100000\n")
    if torch.cuda.is_available():
        pytest.skip("the bounds of host memory bind on a CPU only")
    limit, source = memory_limit(torch, None, "8Gi", tmp_path)
    assert (limit, source) == (int(FREE_SHARE * 500000), "60% of the container's free memory")
    limit, source = memory_limit(torch, None, "100Ki", tmp_path)
    assert (limit, source) == (int(FREE_SHARE * 102400), "60% of pods.memory")


def test_quantities_are_read_as_kubernetes_reads_them():
    read = {"8Gi": 8 << 30, "1.5G": 1_500_000_000, "500k": 500_000, "1e9": 10**9, "7": 7}
    assert {text: quantity(text) for text in read} == read
    with pytest.raises(UserError, match=r"pods\.memory 'much' is not a quantity"):
        quantity("much")


def test_a_container_without_a_limit_is_not_a_limit(tmp_path):
    assert cgroup_free(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("600000\n")
    assert cgroup_free(tmp_path) is None
    old = tmp_path / "memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("2000\n")
    (old / "memory.usage_in_bytes").write_text("500\n")
    assert cgroup_free(tmp_path) == 1500
