"""Threads and arithmetic follow the machine and the configuration."""

import pytest

from tuneline.config import TrainingConfig
from tuneline.errors import UserError
from tuneline.training.loop import compute


@pytest.mark.parametrize(
    ("line", "native"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 sse", True),
        ("flags\t\t: fpu amx_bf16", True),
        ("Features\t: fp asimd bf16", True),
        ("flags\t\t: fpu avx2 avx512f", False),
    ],
)
def test_bf16_is_native_only_where_the_processor_says_so(tmp_path, line, native):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: bf16 in a name\n{line}\n")
    assert compute.has_native_bf16(cpuinfo) is native
    assert compute.has_native_bf16(tmp_path / "none") is False


def test_precision_is_chosen_by_the_processor_unless_configured(monkeypatch):
    monkeypatch.setattr(compute, "has_native_bf16", lambda: False)
    assert compute.choose_precision(TrainingConfig(), "cpu") == "fp32"
    assert compute.choose_precision(TrainingConfig(), "cuda") == "bf16"
    assert compute.choose_precision(TrainingConfig(precision="bf16"), "cpu") == "bf16"
    assert compute.choose_precision(TrainingConfig(qlora=True, precision="fp32"), "cpu") == "bf16"
    monkeypatch.setattr(compute, "has_native_bf16", lambda: True)
    assert compute.choose_precision(TrainingConfig(), "cpu") == "bf16"
    assert compute.choose_precision(TrainingConfig(precision="fp32"), "cpu") == "fp32"


def test_threads_come_from_the_configuration_then_the_environment(monkeypatch):
    monkeypatch.setenv("TUNELINE_THREADS", "3")
    assert compute.training_threads(TrainingConfig()) == 3
    assert compute.training_threads(TrainingConfig(threads=1)) == 1
    monkeypatch.setenv("TUNELINE_THREADS", "many")
    with pytest.raises(UserError, match="TUNELINE_THREADS is 'many'"):
        compute.training_threads(TrainingConfig())
    monkeypatch.delenv("TUNELINE_THREADS")
    assert compute.training_threads(TrainingConfig()) >= 1
