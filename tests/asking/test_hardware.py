import pytest

from tuneline.asking.hardware import Machine, any_machine, differences

H100 = Machine("Intel(R) Xeon(R) Platinum 8480+", 16, 128, ("NVIDIA H100 80GB HBM3",))
TWO_A100 = Machine("AMD EPYC 7763 64-Core Processor", 64, 512, ("NVIDIA A100-SXM4-80GB",) * 2)
SLICE = Machine("AMD EPYC 9B14", 8, 64, ("NVIDIA H100 80GB HBM3 MIG 1g.10gb",))
LAPTOP = Machine("AMD EPYC 9B14", 2, 24, ())


@pytest.mark.parametrize(
    ("target", "machine", "on_gpu", "named"),
    [
        # What matters is compared, and not the exact name.
        ("nvidia-h100", H100, True, None),
        ("h100", H100, True, None),
        ("1x-nvidia-h100", H100, True, None),
        ("nvidia-a100", TWO_A100, True, None),
        ("2x-nvidia-a100-80gb", TWO_A100, True, None),
        ("nvidia-h100-mig-1g.10gb", SLICE, True, None),
        ("laptop-cpu", LAPTOP, False, None),
        ("epyc-2core-cpu", LAPTOP, False, None),
        ("xeon-cpu", H100, False, None),
        ("amd-epyc-64cores-cpu", TWO_A100, False, None),
        ("cpu", LAPTOP, False, None),
        # Other hardware is named.
        ("nvidia-a10", H100, True, "the GPU is NVIDIA H100"),
        ("nvidia-h100", TWO_A100, True, "the GPU is NVIDIA A100-SXM4-80GB, NVIDIA A100"),
        ("4x-nvidia-a100", TWO_A100, True, "2 GPUs of that name instead of 4"),
        ("1x-nvidia-a100", TWO_A100, True, "2 GPUs of that name instead of 1"),
        ("nvidia-h100", SLICE, True, "MIG"),
        ("nvidia-h100", H100, False, "the engine ran on the CPU"),
        ("nvidia-h100", LAPTOP, False, "the engine ran on the CPU"),
        ("laptop-cpu", H100, True, "the engine ran on nvidia-h100-80gb-hbm3"),
        ("xeon-2core-cpu", LAPTOP, False, "the CPU is AMD EPYC 9B14, not xeon"),
        ("epyc-16core-cpu", LAPTOP, False, "2 cores instead of 16"),
    ],
)
def test_a_target_is_compared_with_what_computed(target, machine, on_gpu, named):
    found = differences(target, machine, on_gpu=on_gpu)
    assert len(found) == (named is not None)
    assert all(named in difference for difference in found)


def test_what_an_engine_computed_on_has_the_form_of_a_target():
    assert LAPTOP.computed_on(on_gpu=False) == "amd-epyc-9b14-2core-cpu"
    assert H100.computed_on(on_gpu=False) == "intel-xeon-platinum-8480-16core-cpu"
    assert TWO_A100.computed_on(on_gpu=True) == "2x-nvidia-a100-sxm4-80gb"
    for machine, on_gpu in ((H100, False), (TWO_A100, False), (TWO_A100, True)):
        name = machine.computed_on(on_gpu=on_gpu)
        assert not differences(name, machine, on_gpu=on_gpu)
        assert not any_machine(name)


def test_a_kind_of_machine_is_any_machine():
    assert all(map(any_machine, ("laptop-cpu", "server-cpu", "cpu", "any-local-cpu")))
    assert not any(map(any_machine, ("epyc-cpu", "2core-cpu", "nvidia-h100")))
